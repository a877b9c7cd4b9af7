"""Counts that a training or evaluation step leaves behind; they add up over batches and ranks before dividing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.elements import Elements


@dataclass(frozen=True)
class DraftMetrics:
    """loss_sum: scalar, sum over charged elements; the rest int64[K], per depth.

    total: charged elements; correct: of those, the draft's top-1 is the target's; chain_total: elements whose whole
    chain (a,0..d) is supervised, in the draft vocabulary or not; chain_correct: of those, all of (a,0..d) correct, i.e.
    d+1 drafts in a row would be accepted.
    """

    loss_sum: Tensor
    total: Tensor
    correct: Tensor
    chain_total: Tensor
    chain_correct: Tensor

    def __add__(self, other: DraftMetrics) -> DraftMetrics:
        return DraftMetrics(*(_pad_add(a, b) for a, b in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.loss_sum, self.total, self.correct, self.chain_total, self.chain_correct)

    @property
    def loss(self) -> float:
        """Mean loss per charged element."""
        return float(self.loss_sum / self.total.sum().clamp(min=1))

    @property
    def accuracy(self) -> list[float]:
        """Return the accuracy of each depth on its own: P(draft d+1 right), whatever came before it."""
        return (self.correct / self.total.clamp(min=1)).tolist()

    @property
    def expected_accept_length(self) -> float:
        """Return 1 (the bonus token) + sum over d of P(drafts 1..d+1 all right), teacher-forced on the training text.

        Of the logits alone: what a correction drafts outright (`peagle_core.told`) counts as wrong.
        Counted on whole chains rather than multiplied from per-depth accuracies: neighbouring drafts succeed together,
        so the product would be too low.
        """
        return 1.0 + float((self.chain_correct / self.chain_total.clamp(min=1)).sum())


def _pad_add(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() and a.numel() != b.numel():
        size = max(a.numel(), b.numel())
        a, b = (torch.nn.functional.pad(x, (0, size - x.numel())) for x in (a, b))
    return a + b


def measure(elements: Elements, supervised: Tensor, charged: Tensor, correct: Tensor, loss_sum: Tensor) -> DraftMetrics:
    """Count one batch.

    elements: anchor-major [N]; supervised: bool[N]; charged: bool[N], those of them whose label lies in the draft
    vocabulary; correct: bool[charged.sum()].
    """
    num_depths = int(elements.depth.max()) + 1 if len(elements) else 1
    right = torch.zeros_like(charged)
    right[charged] = correct
    # Per chain, running counts since its depth-0 row tell whether all of (a,0..d) are supervised, and right.
    first = (elements.depth == 0).cumsum(0) - 1
    starts = (elements.depth == 0).nonzero().squeeze(-1)

    def all_so_far(flag: Tensor) -> Tensor:
        running = flag.long().cumsum(0)
        before = running[starts] - flag[starts].long()
        return running - before[first] == elements.depth + 1

    chain_total, chain_correct = all_so_far(supervised), all_so_far(right)

    def per_depth(flag: Tensor) -> Tensor:
        return torch.bincount(elements.depth[flag], minlength=num_depths)

    return DraftMetrics(
        loss_sum, per_depth(charged), per_depth(right), per_depth(chain_total), per_depth(chain_correct)
    )
