"""One training step of the drafter: elements in, loss and gradients out.

`flat` (here) is the reference: every element of the packed row in one forward and one backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.attention import make_attention
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements, supervised
from peagle_core.errors import InputError
from peagle_core.loss import CHUNK_ROWS, Labels, distillation_loss
from peagle_core.metrics import DraftMetrics, measure

MODES = ("flat",)


@dataclass(frozen=True)
class Batch:
    """One packed row of n tokens and what the target said about them.

    input_ids: int64[n]; aux: [n, 3H_t], the three aux states g_i concatenated; final_hidden: [n, H_t], y_i after the
    target's final norm; loss_mask: bool[n], True where the target generated the token; doc_ids: int64[n], -1 = padding.
    """

    input_ids: Tensor
    aux: Tensor
    final_hidden: Tensor
    loss_mask: Tensor
    doc_ids: Tensor

    @property
    def doc_starts(self) -> Tensor:
        """int64[n]: index of the first token of each token's document."""
        index = torch.arange(len(self.doc_ids), device=self.doc_ids.device)
        is_start = torch.ones_like(self.doc_ids, dtype=torch.bool)
        is_start[1:] = self.doc_ids[1:] != self.doc_ids[:-1]
        return torch.where(is_start, index, 0).cummax(0).values


def charged_elements(elements: Elements, batch: Batch, target_head: Tensor, d2t: Tensor) -> Tensor:
    """bool[N]: supervised elements whose label lies in the draft vocabulary (the target's top-1 there, as in EAGLE-3).

    target_head: [V, H_t], the target's output head; d2t: int64[V_d] offsets. Summed over a step's batches and ranks,
    this is the loss's one denominator.
    """
    charged = supervised(elements, batch.loss_mask, batch.doc_ids)
    if len(d2t) == len(target_head):
        return charged
    in_vocab = torch.zeros(len(target_head), dtype=torch.bool, device=d2t.device)
    in_vocab[torch.arange(len(d2t), device=d2t.device) + d2t] = True
    slot, row_of = (elements.position[charged] + 1).unique(return_inverse=True)
    states = batch.final_hidden[slot].split(CHUNK_ROWS)
    top = torch.cat([(x @ target_head.to(x.dtype).T).argmax(-1) for x in states]) if len(slot) else slot
    charged[charged.clone()] = in_vocab[top][row_of]
    return charged


def loss_and_backward(
    drafter: PEagleDrafter,
    batch: Batch,
    elements: Elements,
    mode: str = "flat",
    *,
    target_head: Tensor,
    denominator: float | None = None,
    charged: Tensor | None = None,
    loss: str = "kl",
    depth_weights: Tensor | None = None,
    attention: str = "sdpa",
) -> DraftMetrics:
    """Add the gradients of sum(loss over charged elements) / denominator to the drafter; return the counts.

    elements: any order; target_head: [V, H_t]; denominator: supervised elements of the whole optimizer step, over all
    ranks and accumulation steps (default: this batch's); charged: bool[N] from `charged_elements`, in the order of
    `elements`, computed here if absent; depth_weights: float[K], default 1. Without gradients enabled it only
    measures. Raises InputError on an unknown mode, loss or attention backend.
    """
    if mode not in MODES:
        raise InputError(f"unknown training mode {mode!r}; choose from {', '.join(MODES)}")
    if charged is None:
        charged = charged_elements(elements, batch, target_head, drafter.d2t)
    rows = elements.argsort("anchor")
    elements, charged = elements[rows], charged[rows]
    denominator = float(charged.sum()) if denominator is None else denominator
    hidden = forward_elements(drafter, batch, elements, attention)
    total, metrics = _charge(drafter, batch, elements, charged, hidden, target_head, loss, depth_weights)
    if torch.is_grad_enabled() and denominator > 0:
        (total / denominator).backward()
    return metrics


def forward_elements(drafter: PEagleDrafter, batch: Batch, elements: Elements, attention: str = "sdpa") -> Tensor:
    """All N elements in one pass, anchor-major -> [N, H], before the final norm."""
    is_mask = elements.depth > 0
    slot = elements.anchor[~is_mask]
    source = (~is_mask).cumsum(0) - 1  # every chain follows its depth-0 row
    embed, fused = drafter.input_rows(batch.input_ids[slot + 1], batch.aux[slot], is_mask, source)
    positions = elements.position - batch.doc_starts[elements.anchor]
    attend = make_attention(elements, batch.doc_ids, attention)
    return drafter(embed, fused, positions, lambda _, q, k, v: attend(q, k, v))


def _charge(drafter, batch, elements, charged, hidden, target_head, loss, depth_weights) -> tuple[Tensor, DraftMetrics]:
    """Loss and metrics of the charged rows; the others never reach the head."""
    depth = elements.depth[charged]
    vocab = torch.arange(len(drafter.d2t), device=drafter.d2t.device) + drafter.d2t
    rows = target_head if len(vocab) == len(target_head) else target_head[vocab]
    labels = Labels(batch.final_hidden, rows, elements.position[charged] + 1)
    weight = torch.ones_like(depth, dtype=hidden.dtype) if depth_weights is None else depth_weights[depth]
    total, correct = distillation_loss(drafter.norm(hidden[charged]), drafter.lm_head.weight, labels, weight, loss)
    is_supervised = supervised(elements, batch.loss_mask, batch.doc_ids)
    return total, measure(elements, is_supervised, charged, correct, total.detach())
