"""Distillation loss fused with both heads, in chunks of rows: nobody ever holds [N, vocab].

Forward KL(target || draft) over the draft vocabulary, or cross entropy with the target's top-1 ("ce"). The gradient
of each chunk is taken while its logits are still at hand, so the backward pass only scales what was stored.

A share `tv` of the loss may be total variation, 1 - sum min(p, q): what is missing from the probability that rejection
sampling accepts the draft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peagle_core.errors import InputError
from peagle_core.kernels import runs_on

LOSSES = ("kl", "ce")
CHUNK_ROWS = 1024
CPU_CHUNK_LOGITS = 2**20  # a few megabytes per tensor stay in the cache


class Copied(NamedTuple):
    """What is added to one logit of each row. draft_id: int64[...], which; amount: [...], zero where there is none."""

    draft_id: Tensor
    amount: Tensor

    def add_to(self, logits: Tensor) -> Tensor:
        """Return logits [..., V_d] with it."""
        return logits.scatter_add(-1, self.draft_id[..., None], self.amount[..., None].to(logits.dtype))


@dataclass(frozen=True)
class Labels:
    """Soft labels kept as hidden states: row m's target distribution is softmax(target_rows @ states[index[m]]).

    states: [S, H_t], the target's final hidden state per slot (after its final norm); target_rows: [V_d, H_t], the
    rows of the target's head for the draft vocabulary; index: int64[M], the slot whose distribution labels row m.
    """

    states: Tensor
    target_rows: Tensor
    index: Tensor


def distillation_loss(
    hidden: Tensor,
    lm_head: Tensor,
    labels: Labels,
    weight: Tensor,
    loss: str = "kl",
    chunk_rows: int | None = None,
    tv: float = 0.0,
    copied: Copied | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of the rows' losses, and which rows' top-1 equals the target's.

    hidden: [M, H], normed; lm_head: [V_d, H]; weight: float[M]; chunk_rows: rows whose logits exist at a time, by
    default at most 1024; tv: share of total variation in the loss, the rest being `loss`; copied: of M rows, added to
    their logits. Returns (scalar in fp32 or fp64, bool[M]). Gradients flow to hidden, lm_head and what is copied.
    Raises InputError on an unknown loss.
    """
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
    chunk_rows = chunk_rows or _default_chunk_rows(hidden, lm_head)
    draft_id, amount = (None, None) if copied is None else copied
    return _Distillation.apply(hidden, lm_head, amount, draft_id, labels, weight, loss, chunk_rows, tv)


def _default_chunk_rows(hidden: Tensor, lm_head: Tensor) -> int:
    cached = max(64, CPU_CHUNK_LOGITS // len(lm_head))
    return min(CHUNK_ROWS, cached) if hidden.device.type == "cpu" else CHUNK_ROWS


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.to(x.dtype).T


def chunk_loss(
    draft: Tensor, target: Tensor, target_row: Tensor, weight: Tensor, loss: str, needs_grad: bool, tv: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sum of the weighted losses, top-1 agreement and gradient of one chunk; the reference for the Triton kernel.

    draft: [rows, V_d] logits; target: [slots, V_d] logits; target_row: int64[rows] into them; weight: [rows].
    """
    dtype = torch.promote_types(draft.dtype, torch.float32)
    log_q, log_p = draft.to(dtype).log_softmax(-1), target.to(dtype).log_softmax(-1)
    top = log_p.argmax(-1)[target_row]
    correct = log_q.argmax(-1) == top
    if loss == "kl":
        p = log_p.exp()[target_row]
        losses = (log_p[target_row].sub_(log_q)).mul_(p).sum(-1)
    else:
        p = torch.zeros_like(log_q).scatter_(-1, top[:, None], 1.0)
        losses = -log_q.gather(-1, top[:, None])[:, 0]
    if tv:
        q, target_p = log_q.exp(), log_p.exp()[target_row]
        losses = (1 - tv) * losses + tv * (1 - torch.minimum(target_p, q).sum(-1))
        if not needs_grad:
            return (weight * losses).sum(), correct, None
        is_below = (q < target_p).to(q.dtype)  # where more of the draft is more of the overlap
        grad_tv = q * ((q * is_below).sum(-1, keepdim=True) - is_below)
        return (weight * losses).sum(), correct, ((1 - tv) * (q - p) + tv * grad_tv) * weight[:, None]
    grad = log_q.exp_().sub_(p).mul_(weight[:, None]) if needs_grad else None
    return (weight * losses).sum(), correct, grad


def chunk_loss_triton(
    draft: Tensor, target: Tensor, target_row: Tensor, weight: Tensor, loss: str, needs_grad: bool, tv: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute `chunk_loss` in one kernel; the gradient takes the place of the draft logits."""
    from peagle_core.kernels.distillation import distill

    losses, correct = distill(draft, target, target_row, weight, loss, needs_grad, tv)
    return losses.sum(), correct, draft if needs_grad else None


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        lm_head: Tensor,
        amount: Tensor | None,
        draft_id: Tensor | None,
        labels: Labels,
        weight: Tensor,
        loss: str,
        chunk_rows: int,
        tv: float,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_head, needs_amount = ctx.needs_input_grad[:3]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_head = torch.zeros_like(lm_head) if needs_head else None
        grad_amount = torch.zeros_like(amount) if amount is not None and needs_amount else None
        in_kernel = runs_on(hidden.device) and total.dtype == torch.float32
        loss_of = chunk_loss_triton if in_kernel else chunk_loss
        # Rows that share a slot stand together, so that a chunk projects as few slots as possible, each of them once.
        for rows in labels.index.argsort().split(chunk_rows):
            slot, target_row = labels.index[rows].unique(return_inverse=True)
            draft, target = _logits(hidden[rows], lm_head), _logits(labels.states[slot], labels.target_rows)
            if amount is not None and draft_id is not None:
                draft.scatter_add_(1, draft_id[rows, None], amount[rows, None].to(draft.dtype))
            needs_grad = needs_hidden or needs_head or needs_amount
            losses, correct[rows], grad = loss_of(
                draft, target, target_row, weight[rows].to(total.dtype), loss, needs_grad, tv
            )
            total += losses
            if grad is None:
                continue
            if grad_amount is not None and draft_id is not None:
                grad_amount[rows] = grad.gather(1, draft_id[rows, None])[:, 0].to(grad_amount.dtype)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad @ lm_head.to(grad.dtype)).to(hidden.dtype)
            if grad_head is not None:
                grad_head += (grad.T @ hidden[rows]).to(grad_head.dtype)
        ctx.mark_non_differentiable(correct)
        ctx.grads = grad_hidden, grad_head, grad_amount
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.grads
        scale = [None if g is None else g * grad_total.to(g.dtype) for g in grads]
        return *scale, None, None, None, None, None, None
