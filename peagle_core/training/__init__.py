"""One training step of the drafter: elements in, loss and gradients out.

Three modes, equal to rounding in loss and every gradient: `flat`, the reference, one pass over all elements;
`partition`, the paper's Algorithm 1, one pass per segment of the sequence with its context recomputed; `stream`,
depth 0 once, then the chains a chunk at a time against its cached keys and values. See docs/training_at_scale.md.

EAGLE-3 heads, which draft in turn, have a step of their own with the same arguments and counts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements, supervised
from peagle_core.errors import InputError
from peagle_core.metrics import DraftMetrics, measure
from peagle_core.training.batch import Batch, charged_elements, draft_vocab_rows
from peagle_core.training.eagle3 import eagle3
from peagle_core.training.flat import flat, forward_elements
from peagle_core.training.memory import ActivationCosts, activation_costs, stream_bytes
from peagle_core.training.partitioned import partitioned
from peagle_core.training.step import Step
from peagle_core.training.stream import default_chunk_rows, settled_chunk_rows, stream

MODES = ("flat", "partition", "stream")
EAGLE3_MODES = ("flat", "stream")
NUM_SEGMENTS = 4

__all__ = [
    "EAGLE3_MODES",
    "MODES",
    "NUM_SEGMENTS",
    "ActivationCosts",
    "Batch",
    "activation_costs",
    "charged_elements",
    "default_chunk_rows",
    "forward_elements",
    "loss_and_backward",
    "loss_and_backward_eagle3",
    "step_of",
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
    _check_mode(mode, MODES)
    if drafter.config.autoregressive:
        raise InputError("an EAGLE-3 head has no mask rows; `loss_and_backward_eagle3` trains it")
    step = _begin(
        drafter, batch, elements, target_head, denominator, charged, loss, depth_weights, attention, recompute
    )
    if mode == "flat":
        flat(step)
    elif mode == "partition":
        partitioned(step, num_segments, balanced)
    else:
        stream(step, chunk_rows, memory_budget)
    return _counts(step)


def loss_and_backward_eagle3(
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
    chunk_rows: int | None = None,
    memory_budget: int | None = None,
) -> DraftMetrics:
    """`loss_and_backward` for drafting in turn, as EAGLE-3 heads do: see `peagle_core.training.eagle3`.

    elements: usually of retention 1; position a + d must be a slot of the anchor's document. Loss, charged elements,
    denominator and counts are those of P-EAGLE. mode "flat": all chains at once; "stream": chunk_rows or memory_budget,
    as there. attention: of the depth-0 rows; the chains' rows, a few keys more than the context, are joined from parts
    on every device. The drafter may be of either kind; mask_hidden, where it has one, is not touched.

    Raises InputError as `loss_and_backward` does.
    """
    _check_mode(mode, EAGLE3_MODES)
    step = _begin(
        drafter, batch, elements, target_head, denominator, charged, loss, depth_weights, attention, recompute
    )
    eagle3(step, settled_chunk_rows(step, chunk_rows, memory_budget) if mode == "stream" else None)
    return _counts(step)


def step_of(drafter: PEagleDrafter) -> Callable[..., DraftMetrics]:
    """The step that trains this kind of head; both take the same arguments, but for what Algorithm 1 needs."""
    return loss_and_backward_eagle3 if drafter.config.autoregressive else loss_and_backward


def _check_mode(mode: str, modes: tuple[str, ...]) -> None:
    if mode not in modes:
        raise InputError(f"unknown training mode {mode!r}; choose from {', '.join(modes)}")


def _begin(
    drafter: PEagleDrafter, batch: Batch, elements: Elements, target_head: Tensor, denominator: float | None,
    charged: Tensor | None, loss: str, depth_weights: Tensor | None, attention: str, recompute: bool,
) -> Step:  # fmt: skip
    """Rows anchor-major, what is charged and by how much it is divided settled."""
    if charged is None:
        charged = charged_elements(elements, batch, target_head, drafter.d2t)
    rows = elements.argsort("anchor")
    elements, charged = elements[rows], charged[rows]
    denominator = float(charged.sum()) if denominator is None else denominator
    target_rows = draft_vocab_rows(target_head, drafter.d2t)
    return Step(drafter, batch, elements, charged, target_rows, denominator, loss, depth_weights, attention, recompute)


def _counts(step: Step) -> DraftMetrics:
    on_text = supervised(step.elements, step.batch.loss_mask, step.batch.doc_ids)
    return measure(step.elements, on_text, step.charged, step.right[step.charged], step.loss_sum)
