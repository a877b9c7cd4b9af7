"""Loss, top-1 agreement and gradient of a chunk of rows in two reads of its logits and one write.

Torch needs some ten passes over [rows, V_d] for the same: two log-softmaxes, an exponential, products and sums. One
program takes one row; the gradient replaces the draft logits. Everything in float32, whatever the logits are stored in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 4096


@triton.jit
def distill_rows(
    DRAFT, TARGET, TARGET_ROW, WEIGHT, LOSS, CORRECT, vocab, tv, HARD: tl.constexpr, MIXED: tl.constexpr,
    WRITE_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """DRAFT: [rows, vocab] logits, replaced by WEIGHT * d loss / d logits; TARGET: [slots, vocab] logits; TARGET_ROW:
    int64[rows] into them; WEIGHT, LOSS: float32[rows], LOSS weighted; CORRECT: int8[rows]. HARD: cross entropy with the
    target's top-1, else KL(target || draft). MIXED: tv is the share of total variation in the loss. Grid (rows,).
    """
    row = tl.program_id(0).to(tl.int64)
    DRAFT += row * vocab
    TARGET += tl.load(TARGET_ROW + row) * vocab
    columns = tl.arange(0, BLOCK)
    # Running maxima, sums of exponentials, and sum of exp(target) * (target - draft), all relative to the maxima.
    draft_max = -1.0e30
    target_max = -1.0e30
    draft_sum = 0.0
    target_sum = 0.0
    gap_sum = 0.0
    draft_top = tl.full([], 0, tl.int32)
    target_top = tl.full([], 0, tl.int32)
    draft_at_top = 0.0
    for start in range(0, vocab, BLOCK):
        column = start + columns
        inside = column < vocab
        draft = tl.load(DRAFT + column, mask=inside, other=-1.0e30).to(tl.float32)
        target = tl.load(TARGET + column, mask=inside, other=-1.0e30).to(tl.float32)
        # Top-1 with the first of equals, as torch.argmax breaks ties.
        block_max = tl.max(draft, 0)
        block_top = tl.min(tl.where(draft == block_max, column, vocab), 0)
        draft_top = tl.where(block_max > draft_max, block_top, draft_top)
        new_max = tl.maximum(draft_max, block_max)
        draft_sum = draft_sum * tl.exp(draft_max - new_max) + tl.sum(tl.where(inside, tl.exp(draft - new_max), 0.0), 0)
        draft_max = new_max

        block_max = tl.max(target, 0)
        block_top = tl.min(tl.where(target == block_max, column, vocab), 0)
        is_new = block_max > target_max
        target_top = tl.where(is_new, block_top, target_top)
        draft_at_top = tl.where(is_new, tl.sum(tl.where(column == block_top, draft, 0.0), 0), draft_at_top)
        new_max = tl.maximum(target_max, block_max)
        weight = tl.where(inside, tl.exp(target - new_max), 0.0)
        shrink = tl.exp(target_max - new_max)
        target_sum = target_sum * shrink + tl.sum(weight, 0)
        gap_sum = gap_sum * shrink + tl.sum(weight * (target - draft), 0)
        target_max = new_max

    draft_lse = draft_max + tl.log(draft_sum)
    target_lse = target_max + tl.log(target_sum)
    row_weight = tl.load(WEIGHT + row)
    loss = draft_lse - draft_at_top if HARD else gap_sum / target_sum - target_lse + draft_lse
    if MIXED:
        overlap = 0.0
        below = 0.0  # mass of the draft where it is below the target
        for start in range(0, vocab, BLOCK):
            column = start + columns
            inside = column < vocab
            q = tl.exp(tl.load(DRAFT + column, mask=inside, other=-1.0e30).to(tl.float32) - draft_lse)
            p = tl.exp(tl.load(TARGET + column, mask=inside, other=-1.0e30).to(tl.float32) - target_lse)
            overlap += tl.sum(tl.minimum(p, q), 0)
            below += tl.sum(tl.where(q < p, q, 0.0), 0)
        loss = (1.0 - tv) * loss + tv * (1.0 - overlap)
    tl.store(LOSS + row, loss * row_weight)
    tl.store(CORRECT + row, (draft_top == target_top).to(tl.int8))
    if WRITE_GRAD:
        for start in range(0, vocab, BLOCK):
            column = start + columns
            inside = column < vocab
            draft = tl.load(DRAFT + column, mask=inside, other=-1.0e30).to(tl.float32)
            q = tl.exp(draft - draft_lse)
            if HARD:
                grad = q - tl.where(column == target_top, 1.0, 0.0)
            else:
                target = tl.load(TARGET + column, mask=inside, other=-1.0e30).to(tl.float32)
                grad = q - tl.exp(target - target_lse)
            if MIXED:
                target = tl.load(TARGET + column, mask=inside, other=-1.0e30).to(tl.float32)
                is_below = tl.where(q < tl.exp(target - target_lse), 1.0, 0.0)
                grad = (1.0 - tv) * grad + tv * q * (below - is_below)
            grad = grad * row_weight
            tl.store(DRAFT + column, grad.to(DRAFT.dtype.element_ty), mask=inside)


def distill(
    draft: Tensor, target: Tensor, target_row: Tensor, weight: Tensor, loss: str, write_grad: bool, tv: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute weighted losses float32[rows] and top-1 agreement bool[rows].

    With write_grad, draft becomes the gradient.
    draft: [rows, V_d] contiguous; target: [slots, V_d] contiguous; target_row: int64[rows]; weight: float[rows];
    tv: see `peagle_core.loss`.
    """
    rows, vocab = draft.shape
    losses = draft.new_empty(rows, dtype=torch.float32)
    correct = torch.empty(rows, dtype=torch.int8, device=draft.device)
    block = min(MAX_BLOCK, max(16, triton.next_power_of_2(vocab)))
    if rows:
        distill_rows[(rows,)](
            draft, target, target_row, weight.float().contiguous(), losses, correct, vocab, tv,
            HARD=loss == "ce", MIXED=tv > 0, WRITE_GRAD=write_grad, BLOCK=block, num_warps=8,
        )  # fmt: skip
    return losses, correct.bool()
