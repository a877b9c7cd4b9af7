"""How a training step is computed: every choice, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from peagle_core.attention import check_backend
from peagle_core.errors import InputError
from peagle_core.loss import LOSSES

MODES = ("flat", "partition", "stream")
EAGLE3_MODES = ("flat", "stream")
NUM_SEGMENTS = 4


@dataclass(frozen=True)
class StepOptions:
    """The choices of a step; none but loss, tv and the weights changes what is learned, beyond rounding.

    mode: "flat", one pass over all elements; "partition", the paper's Algorithm 1; "stream", depth 0 once, then the
    chains a chunk at a time. loss: "kl" or "ce"; tv: share of total variation beside it, 0 to 1. depth_weights: K
    factors of the loss, default 1; a list or a tensor will do. attention: "dense", "torch" or "triton". recompute: keep
    only each layer's input and run the layer again in the backward pass (activation checkpointing). num_segments and
    balanced (cut by element count, not by position) belong to mode "partition", chunk_rows (elements per chunk, default
    by device) to mode "stream".

    Raises InputError on an unknown mode, loss or attention backend, on tv outside of 0..1, and on num_segments or
    chunk_rows below 1.
    """

    mode: str = "flat"
    loss: str = "kl"
    tv: float = 0.0
    depth_weights: tuple[float, ...] | None = None
    attention: str = "torch"
    recompute: bool = False
    num_segments: int = NUM_SEGMENTS
    balanced: bool = False
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode, MODES)
        if self.loss not in LOSSES:
            raise InputError(f"unknown loss {self.loss!r}; choose from {', '.join(LOSSES)}")
        if not 0 <= self.tv <= 1:
            raise InputError(f"tv must be a share from 0 to 1, found {self.tv}")
        fill = object.__setattr__
        fill(self, "attention", check_backend(self.attention))
        if self.depth_weights is not None:
            weights = self.depth_weights
            fill(self, "depth_weights", tuple(weights.tolist() if isinstance(weights, Tensor) else weights))
        for name in ("num_segments", "chunk_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, found {value}")


def check_mode(mode: str, modes: tuple[str, ...]) -> None:
    """Raise InputError unless `modes` has that mode."""
    if mode not in modes:
        raise InputError(f"unknown training mode {mode!r}; choose from {', '.join(modes)}")
