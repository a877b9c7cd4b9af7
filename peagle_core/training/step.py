"""What every mode works on: one step's rows and choices, the loss of some of its rows, and the sums they leave."""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.loss import Labels, distillation_loss
from peagle_core.told import ToldInTraining
from peagle_core.training.batch import Batch
from peagle_core.training.options import StepOptions


class Step:
    """elements: N, anchor-major; charged: bool[N]; target_rows: [V_d, H_t]; the rest as in `loss_and_backward`.

    Filled by `charge`: loss_sum, scalar; right: bool[N], charged rows whose top-1 is the target's.
    """

    def __init__(
        self,
        drafter: PEagleDrafter,
        batch: Batch,
        elements: Elements,
        charged: Tensor,
        target_rows: Tensor,
        denominator: float,
        options: StepOptions,
    ) -> None:
        self.drafter, self.batch, self.elements, self.charged = drafter, batch, elements, charged
        self.target_rows, self.denominator, self.options = target_rows, denominator, options
        dtype = torch.promote_types(drafter.fc.weight.dtype, torch.float32)
        self.loss_sum = drafter.fc.weight.new_zeros((), dtype=dtype)
        self.right = torch.zeros_like(charged)
        vocab_size, corrected = drafter.config.vocab_size, drafter.correction is not None
        self.told = ToldInTraining(batch.input_ids, batch.doc_starts, vocab_size) if corrected else None
        weights = options.depth_weights
        self.depth_weights = None if weights is None else self.loss_sum.new_tensor(weights)

    def charge(self, rows: Tensor, hidden: Tensor) -> None:
        """Run loss and backward pass of the charged ones among some rows; the others never reach the head.

        rows: int64[M] into the elements; hidden: [M, H], their states before the final norm.
        """
        counts = self.charged[rows]
        rows, hidden = rows[counts], hidden[counts]
        depth, position = self.elements.depth[rows], self.elements.position[rows]
        labels = Labels(self.batch.final_hidden, self.target_rows, position + 1)
        weights = self.depth_weights
        weight = torch.ones_like(depth, dtype=self.loss_sum.dtype) if weights is None else weights[depth]
        told = None if self.told is None else self.told(self.elements.anchor[rows], depth)
        features, head, copied = self.drafter.loss_factors(hidden, told)
        total, correct = distillation_loss(
            features, head, labels, weight, self.options.loss, tv=self.options.tv, copied=copied
        )
        self.loss_sum = self.loss_sum + total.detach()
        self.right[rows] = correct
        if total.requires_grad and self.denominator > 0:
            (total / self.denominator).backward()

    def positions(self, elements: Elements) -> Tensor:
        """Return rotary positions, int64, counted from zero in every document."""
        return elements.position - self.batch.doc_starts[elements.anchor]
