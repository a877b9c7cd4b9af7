"""One training step of the drafter: elements in, loss and gradients out.

Three modes, equal to rounding in loss and every gradient: `flat`, the reference, one pass over all elements;
`partition`, the paper's Algorithm 1, one pass per segment of the sequence with its context recomputed; `stream`,
depth 0 once, then the chains a chunk at a time against its cached keys and values. See docs/training_at_scale.md.
"""

from __future__ import annotations

from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements, supervised
from peagle_core.errors import InputError
from peagle_core.metrics import DraftMetrics, measure
from peagle_core.training.batch import Batch, charged_elements, draft_vocab_rows
from peagle_core.training.flat import flat, forward_elements
from peagle_core.training.memory import ActivationCosts, activation_costs, stream_bytes
from peagle_core.training.partitioned import partitioned
from peagle_core.training.step import Step
from peagle_core.training.stream import default_chunk_rows, stream

MODES = ("flat", "partition", "stream")
NUM_SEGMENTS = 4

__all__ = [
    "MODES",
    "NUM_SEGMENTS",
    "ActivationCosts",
    "Batch",
    "activation_costs",
    "charged_elements",
    "default_chunk_rows",
    "forward_elements",
    "loss_and_backward",
    "stream_bytes",
]


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
    recompute: bool = False,
    num_segments: int = NUM_SEGMENTS,
    balanced: bool = False,
    chunk_rows: int | None = None,
    memory_budget: int | None = None,
) -> DraftMetrics:
    """Add the gradients of sum(loss over charged elements) / denominator to the drafter; return the counts.

    elements: N of them, any order; target_head: [V, H_t]; denominator: supervised elements of the whole optimizer step,
    over all ranks and accumulation steps (default: this batch's); charged: bool[N] from `charged_elements`, in the
    order of `elements`, computed here if absent; depth_weights: float[K], default 1. recompute: keep only each layer's
    input and run the layer again in the backward pass (activation checkpointing). Without gradients enabled it only
    measures. May be called under torch.autocast.

    mode "partition": num_segments and balanced (cut by element count, not by position). mode "stream": chunk_rows,
    elements per chunk, or memory_budget, bytes for activations, from which the largest chunk that fits is chosen.

    Raises InputError on an unknown mode, loss or attention backend, on num_segments or chunk_rows below 1, and on a
    memory_budget that is too small or comes together with chunk_rows.
    """
    if mode not in MODES:
        raise InputError(f"unknown training mode {mode!r}; choose from {', '.join(MODES)}")
    if charged is None:
        charged = charged_elements(elements, batch, target_head, drafter.d2t)
    rows = elements.argsort("anchor")
    elements, charged = elements[rows], charged[rows]
    denominator = float(charged.sum()) if denominator is None else denominator
    target_rows = draft_vocab_rows(target_head, drafter.d2t)
    step = Step(drafter, batch, elements, charged, target_rows, denominator, loss, depth_weights, attention, recompute)
    if mode == "flat":
        flat(step)
    elif mode == "partition":
        partitioned(step, num_segments, balanced)
    else:
        stream(step, chunk_rows, memory_budget)
    on_text = supervised(elements, batch.loss_mask, batch.doc_ids)
    return measure(elements, on_text, charged, step.right[charged], step.loss_sum)
