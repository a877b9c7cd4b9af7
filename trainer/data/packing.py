"""Pack documents into rows, by best fit: longest first, each into the fullest row that still has room."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.data.documents import Document
from trainer.data.prepared import PreparedDocuments


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
        """Return the tokens of each document, in order."""
        return self.doc_ids.unique_consecutive(return_counts=True)[1].tolist()


class PackedRows(Sequence[PackedRow]):
    """Rows that are joined when asked for. members: the places of each row's documents."""

    def __init__(self, documents: Sequence[Document], members: list[list[int]]) -> None:
        self.documents = documents
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return PackedRows(self.documents, self.members[row])
        return join([self.documents[i] for i in self.members[row]])

    def __iter__(self) -> Iterator[PackedRow]:
        return (self[i] for i in range(len(self)))


def pack(documents: Sequence[Document], row_length: int) -> PackedRows:
    """Put every document, whole, into a row of at most row_length tokens; the same rows for the same documents.

    Documents of equal length meet by chance: neighbours in a file are often alike, and a step of four alike documents
    teaches little more than a step of one (docs/decisions.md).
    """
    lengths = documents.lengths if isinstance(documents, PreparedDocuments) else [len(d) for d in documents]
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    for i in sorted(shuffled, key=lambda i: -lengths[i]):
        length = lengths[i]
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
    return PackedRows(documents, rows)


def join(documents: Sequence[Document]) -> PackedRow:
    """Return the documents, in this order, as one row."""
    lengths = torch.tensor([len(d) for d in documents])
    return PackedRow(
        torch.cat([d.input_ids for d in documents]),
        torch.cat([d.loss_mask for d in documents]),
        torch.repeat_interleave(torch.arange(len(documents)), lengths),
    )
