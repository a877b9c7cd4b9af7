"""The one thing a source of hidden states does: say what the target thinks of a packed row."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.errors import InputError
from peagle_core.training import Batch
from trainer.data.packing import PackedRow


class StateSource(Protocol):
    """head: [V, H_t], the weight of the target's output head, on the training device; target: the model that computes
    states in this process, None where none does.
    """

    @property
    def head(self) -> Tensor: ...

    @property
    def target(self) -> PreTrainedModel | None: ...

    def __call__(self, row: PackedRow) -> Batch:
        """The row with its aux and final states: float32 (as the drafter's master weights are), on the training device.

        Raises InputError when they are not finite.
        """
        ...


def batch_of(row: PackedRow, aux: list[Tensor], final: list[Tensor], device: torch.device, blame: str) -> Batch:
    """A source's answer from the states of the row's documents, in any dtype and place.

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
