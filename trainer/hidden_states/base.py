"""Define what every source of hidden states does: give the target's states of a packed row."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.errors import InputError
from peagle_core.training import Batch
from trainer.data.packing import PackedRow


class StateSource(ABC):
    """Gives the target's hidden states of packed rows.

    head: [V, H_t], the weight of the target's output head, on the training device; target: the model that computes
    states in this process, None where none does; rows_at_once: how many rows may be asked for together, from as many
    threads.
    """

    head: Tensor
    target: PreTrainedModel | None = None
    rows_at_once: int = 1

    @abstractmethod
    def __call__(self, row: PackedRow) -> Batch:
        """Return the row with its aux and final states.

        They are float32 (as the drafter's master weights are), on the training device.
        Raises InputError when they are not finite.
        """

    def flush(self) -> None:  # noqa: B027, most sources keep nothing
        """Write what was computed and is not on disk yet, where this source keeps states on disk."""

    def remove(self) -> None:  # noqa: B027
        """Delete the states on disk, where this source keeps any."""


def batch_of(row: PackedRow, aux: list[Tensor], final: list[Tensor], device: torch.device, blame: str) -> Batch:
    """Join the states of the row's documents, in any dtype and on any device, to what a source returns.

    blame: the sentence for states that are not finite, which is an InputError.
    """
    batch = Batch(
        row.input_ids.to(device),
        torch.cat([part.to(device) for part in aux]).float(),
        torch.cat([part.to(device) for part in final]).float(),
        row.loss_mask.to(device),
        row.doc_ids.to(device),
    )
    if not (torch.isfinite(batch.aux).all() and torch.isfinite(batch.final_hidden).all()):
        raise InputError(blame)
    return batch
