"""Documents -> packed rows, by best fit: longest first, each into the fullest row that still has room."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data.documents import Document


@dataclass(frozen=True)
class PackedRow:
    """Documents one after the other. input_ids, doc_ids: int64[n]; loss_mask: bool[n]. Rows have no padding."""

    input_ids: Tensor
    loss_mask: Tensor
    doc_ids: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document, in order."""
        return self.doc_ids.unique_consecutive(return_counts=True)[1].tolist()


def pack(documents: Sequence[Document], row_length: int) -> list[PackedRow]:
    """Every document whole in one row of at most row_length tokens; the same rows for the same documents."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for i in sorted(range(len(documents)), key=lambda i: -len(documents[i])):
        length = len(documents[i])
        if length > row_length:
            raise ValueError(f"document {i} has {length} tokens, more than a row of {row_length}")
        at = bisect.bisect_left(room, (length, -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row = row_length, len(rows)
            rows.append([])
        rows[row].append(i)
        bisect.insort(room, (free - length, row))
    return [join([documents[i] for i in row]) for row in rows]


def join(documents: Sequence[Document]) -> PackedRow:
    lengths = torch.tensor([len(d) for d in documents])
    return PackedRow(
        torch.cat([d.input_ids for d in documents]),
        torch.cat([d.loss_mask for d in documents]),
        torch.repeat_interleave(torch.arange(len(documents)), lengths),
    )
