"""The one thing a source of hidden states does: say what the target thinks of a packed row."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from peagle_core.training import Batch
from trainer.data.packing import PackedRow


class StateSource(Protocol):
    """head: [V, H_t], the weight of the target's output head, on the training device."""

    @property
    def head(self) -> Tensor: ...

    def __call__(self, row: PackedRow) -> Batch:
        """The row with its aux and final states: float32 (as the drafter's master weights are), on the training device.

        Raises InputError when they are not finite.
        """
        ...
