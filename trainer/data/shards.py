"""Write and read a shard of prepared data: a safetensors file of documents, and a note that says that it is done.

input_ids int32[n], loss_mask bool[n], offsets int64[documents + 1]. The note shard-<n>.json has the file's checksum; it
is written after the shard, so a shard without one was not finished. `prepare` gathers the notes into the index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from peagle_core.atomic import replace_file
from peagle_core.errors import InputError
from trainer.data.documents import Document, ReadReport
from trainer.storage.index import sha256_of


def write_shard(path: Path, documents: Sequence[Document], report: ReadReport) -> None:
    """Write the documents and, after them, the note. Raises OSError when the disk does not take them."""
    lengths = torch.tensor([0, *map(len, documents)], dtype=torch.int64)
    nothing = [torch.zeros(0, dtype=torch.int64)]
    data = save(
        {
            "input_ids": torch.cat(nothing + [d.input_ids for d in documents]).to(torch.int32),
            "loss_mask": torch.cat([torch.zeros(0, dtype=torch.bool), *(d.loss_mask for d in documents)]),
            "offsets": lengths.cumsum(0),
        }
    )
    note = {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "documents": len(documents),
        "tokens": int(lengths.sum()),
        "read": asdict(report),
    }
    replace_file(path, data)
    replace_file(note_path(path), json.dumps(note).encode())


def note_path(path: Path) -> Path:
    """Return the name of the note that shard `path` is done."""
    return path.with_suffix(".json")


def finished_shard(path: Path) -> dict[str, Any] | None:
    """Return the shard's note; None when the shard is absent, unfinished, or not what the note says."""
    try:
        note = json.loads(note_path(path).read_bytes())
        return note if sha256_of(path) == note["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Shard:
    """Read documents of one file, through a memory map, when asked for. Raises InputError when it is no shard."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = safe_open(path, framework="pt")
            self.offsets = self.file.get_tensor("offsets")
            self.input_ids = self.file.get_slice("input_ids")
            self.loss_mask = self.file.get_slice("loss_mask")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Document:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        return Document(self.input_ids[start:stop].to(torch.int64), self.loss_mask[start:stop])

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (input_ids, loss_mask) of all documents, one after the other."""
        return self.file.get_tensor("input_ids"), self.file.get_tensor("loss_mask")
