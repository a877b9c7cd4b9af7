"""One training step of the drafter: elements in, loss and gradients out; read `loss_and_backward` first.

Three modes, equal to rounding in loss and every gradient: `flat`, the reference, one pass over all elements;
`partition`, the paper's Algorithm 1, one pass per segment of the sequence with its context recomputed; `stream`,
depth 0 once, then the chains a chunk at a time against its cached keys and values. See docs/training_at_scale.md.
EAGLE-3 heads have passes of their own (`eagle3`).
"""

from peagle_core.training.batch import Batch, charged_elements
from peagle_core.training.flat import forward_elements
from peagle_core.training.loss_and_backward import loss_and_backward
from peagle_core.training.memory import ActivationCosts, activation_costs, stream_bytes
from peagle_core.training.options import EAGLE3_MODES, MODES, NUM_SEGMENTS, StepOptions
from peagle_core.training.standing import standing_drafts
from peagle_core.training.stream import default_chunk_rows

__all__ = [
    "EAGLE3_MODES",
    "MODES",
    "NUM_SEGMENTS",
    "ActivationCosts",
    "Batch",
    "StepOptions",
    "activation_costs",
    "charged_elements",
    "default_chunk_rows",
    "forward_elements",
    "loss_and_backward",
    "standing_drafts",
    "stream_bytes",
]
