"""How many drafts would stand at every place of a text: the drafter loop's answer without a pass of the target."""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import supervised
from peagle_core.told import TOKENS
from peagle_core.training.batch import Batch, charged_elements, target_top1
from peagle_core.training.loss_and_backward import run_step
from peagle_core.training.options import StepOptions


@torch.no_grad()
def standing_drafts(
    drafter: PEagleDrafter, batch: Batch, num_draft_tokens: int, target_head: Tensor, options: StepOptions
) -> Tensor:
    """Return int64[n]: how many drafts in a row stand, of those that follow x_{i+1} when a pass ends at slot i.

    A draft stands where it is the target's top-1 behind the text before it. So on the target's own greedy answer it is
    what the loop of `peagle_core.generate` accepts at that place: training shows a row what serving shows it, and where
    the drafts before one stand, they are the text. At most K of them, and none behind the generated text's end.
    target_head: [V, H_t]. num_draft_tokens may exceed the depths that the head was trained for.
    """
    elements = sample_elements(batch.loss_mask, batch.doc_ids, num_draft_tokens, 1.0).to(batch.input_ids.device)
    charged = charged_elements(elements, batch, target_head, drafter.d2t)
    step = run_step(drafter, batch, elements, charged, target_head, denominator=0.0, options=options)
    elements, is_right = step.elements, step.right
    if step.told is not None:  # what is drafted outright is in no logit
        told = step.told(elements.anchor, elements.depth)
        outright = drafter.outright(told) & supervised(elements, batch.loss_mask, batch.doc_ids)
        top = target_top1(elements[outright], batch, target_head)
        is_right[outright] = told[outright, TOKENS - 1] == top
    right = torch.zeros(len(batch.input_ids), num_draft_tokens, dtype=torch.int64, device=batch.input_ids.device)
    right[elements.anchor, elements.depth] = is_right.long()
    return right.cumprod(1).sum(1)
