"""Mode "flat": every element of the packed row in one forward and one backward. The reference for the other two."""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.attention import make_attention
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.training.batch import Batch
from peagle_core.training.step import Step


def flat(step: Step) -> None:
    """Run one pass over all N elements."""
    options = step.options
    hidden = forward_elements(step.drafter, step.batch, step.elements, options.attention, options.recompute)
    step.charge(torch.arange(len(step.elements), device=hidden.device), hidden)


def forward_elements(
    drafter: PEagleDrafter, batch: Batch, elements: Elements, attention: str = "torch", recompute: bool = False
) -> Tensor:
    """Run all N elements, anchor-major, in one pass -> [N, H], before the final norm."""
    is_mask = elements.depth > 0
    slot = elements.anchor[~is_mask]
    source = (~is_mask).cumsum(0) - 1  # every chain follows its depth-0 row
    embed, fused = drafter.input_rows(batch.input_ids[slot + 1], batch.aux[slot], is_mask, source, elements.depth)
    positions = elements.position - batch.doc_starts[elements.anchor]
    attend = make_attention(elements, batch.doc_ids, attention)
    return drafter(embed, fused, positions, lambda _, q, k, v: attend(q, k, v), recompute)
