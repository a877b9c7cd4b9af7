"""The training step: elements in, loss and gradients out.

batch      one packed row: tokens and what the target said about them
elements   the (anchor, depth) pairs that `peagle_core.cod.sample_elements` drew from it
Step       the rows, anchor-major, which of them are charged, and the sums that they leave
flat, partitioned, stream, eagle3   which passes over the rows are run, and when each goes backward
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements, supervised
from peagle_core.metrics import DraftMetrics, measure
from peagle_core.training.batch import Batch, charged_elements, draft_vocab_rows
from peagle_core.training.eagle3 import eagle3
from peagle_core.training.flat import flat
from peagle_core.training.options import StepOptions
from peagle_core.training.partitioned import partitioned
from peagle_core.training.step import Step
from peagle_core.training.stream import stream

DEFAULTS = StepOptions()
PASSES = {"flat": flat, "partition": partitioned, "stream": stream}


def loss_and_backward(
    drafter: PEagleDrafter,
    batch: Batch,
    elements: Elements,
    mode: str | None = None,
    *,
    target_head: Tensor,
    denominator: float | None = None,
    charged: Tensor | None = None,
    options: StepOptions = DEFAULTS,
    **changes: Any,
) -> DraftMetrics:
    """Add the gradients of sum(loss over charged elements) / denominator to the drafter; return the counts.

    elements: N of them, any order; target_head: [V, H_t]; denominator: supervised elements of the whole optimizer step,
    over all ranks and accumulation steps (default: this batch's); charged: bool[N] from `charged_elements`, in the
    order of `elements`, computed here if absent. mode and every other field of `StepOptions` can be given by keyword,
    for example recompute=True, or all together as options. Without gradients enabled it only measures. May be called
    under torch.autocast.

    An EAGLE-3 head (config.autoregressive) is trained by training-time test, see `peagle_core.training.eagle3`, with
    the same elements (usually of retention 1), loss, denominator and counts. Raises InputError as `StepOptions` does,
    and for an EAGLE-3 head in mode "partition".
    """
    options = replace(options, **changes) if mode is None else replace(options, mode=mode, **changes)
    if charged is None:
        charged = charged_elements(elements, batch, target_head, drafter.d2t)
    denominator = float(charged.sum()) if denominator is None else denominator
    step = run_step(drafter, batch, elements, charged, target_head, denominator, options)
    on_text = supervised(step.elements, batch.loss_mask, batch.doc_ids)
    return measure(step.elements, on_text, step.charged, step.right[step.charged], step.loss_sum)


def run_step(
    drafter: PEagleDrafter,
    batch: Batch,
    elements: Elements,
    charged: Tensor,
    target_head: Tensor,
    denominator: float,
    options: StepOptions,
) -> Step:
    """Run the passes over a step's rows, as its options and the kind of head say; return what they left.

    Arguments are those of `loss_and_backward`; the step has the elements anchor-major.
    """
    rows = elements.argsort("anchor")
    target_rows = draft_vocab_rows(target_head, drafter.d2t)
    step = Step(drafter, batch, elements[rows], charged[rows], target_rows, denominator, options)
    if drafter.config.autoregressive:
        eagle3(step)
    else:
        PASSES[options.mode](step)
    return step
