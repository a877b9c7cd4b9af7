"""Write and read a file of stored hidden states: documents one after the other, each under the digest of its token ids.

input_ids int32[n]; aux [n, 3H_t] and final_hidden [n, H_t], bfloat16 or float32; offsets int64[documents + 1]; keys
uint8[documents, 16]; checksums uint8[documents, 32], SHA-256 of a document's ids and states. Whoever lists the file
keeps the checksum of keys, offsets and checksums, so a file is known to be whole without reading its states, and a
document's states are compared when they are first read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peagle_core.atomic import new_file
from peagle_core.errors import InputError
from trainer.storage.index import Entry

KEY_BYTES = 16


@dataclass(frozen=True)
class DocumentStates:
    """Hidden states of one document. input_ids: int64[n]; aux: [n, 3H_t]; final_hidden: [n, H_t]. On the CPU."""

    input_ids: Tensor
    aux: Tensor
    final_hidden: Tensor


def document_key(input_ids: Tensor) -> bytes:
    """Return what a document's states are found by: 16 bytes of SHA-256 of its token ids."""
    return hashlib.sha256(input_ids.to(torch.int32).numpy().tobytes()).digest()[:KEY_BYTES]


def write_states(path: Path, documents: Sequence[DocumentStates]) -> Entry:
    """Write a shard and return its entry for an index. Raises OSError when the disk does not take it."""
    lengths = torch.tensor([0, *(len(d.input_ids) for d in documents)])
    lists = {
        "keys": torch.tensor([list(document_key(d.input_ids)) for d in documents], dtype=torch.uint8),
        "offsets": lengths.cumsum(0),
        "checksums": torch.tensor([list(_checksum(d)) for d in documents], dtype=torch.uint8),
    }
    tensors = {
        "input_ids": torch.cat([d.input_ids for d in documents]).to(torch.int32),
        "aux": torch.cat([d.aux for d in documents]),
        "final_hidden": torch.cat([d.final_hidden for d in documents]),
    }
    with new_file(path) as partial:
        try:
            save_file({**tensors, **lists}, partial)
        except SafetensorError as error:  # its own type, for a full disk too
            raise OSError(str(error)) from None
        size = partial.stat().st_size
    tokens = int(lengths.sum())
    return {
        "file": path.name, "bytes": size, "sha256": _digest(lists).hex(), "documents": len(documents), "tokens": tokens,
    }  # fmt: skip


class StateShard:
    """Reads documents of one file, through a memory map, when asked for.

    entry: of the file, in the index. Raises InputError when the file is not the one the index speaks of.
    """

    def __init__(self, path: Path, entry: Entry) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise InputError(f"{path}: has {size} bytes, the index says {entry['bytes']}; extract it again")
            self.file = safe_open(path, framework="pt")
            lists = {name: self.file.get_tensor(name) for name in ("keys", "offsets", "checksums")}
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        if _digest(lists).hex() != entry["sha256"]:
            raise self._damaged("its list of documents")
        self.offsets = lists["offsets"].tolist()
        self.keys = [bytes(key) for key in lists["keys"].tolist()]
        self.checksums = [bytes(checksum) for checksum in lists["checksums"].tolist()]
        self._checked: set[int] = set()

    def __getitem__(self, number: int) -> DocumentStates:
        rows = slice(self.offsets[number], self.offsets[number + 1])
        ids, aux, final = (self.file.get_slice(name)[rows] for name in ("input_ids", "aux", "final_hidden"))
        document = DocumentStates(ids.to(torch.int64), aux, final)
        if number not in self._checked:
            if _checksum(document) != self.checksums[number]:
                raise self._damaged(f"document {number}")
            if not (torch.isfinite(aux).all() and torch.isfinite(final).all()):
                raise InputError(f"{self.path}: the states of document {number} are not finite; extract it again")
            self._checked.add(number)
        return document

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: is damaged, the checksum of {what} is wrong; remove its directory and extract")


def _checksum(document: DocumentStates) -> bytes:
    parts = (document.input_ids.to(torch.int32), document.aux, document.final_hidden)
    return _digest({str(i): part for i, part in enumerate(parts)})


def _digest(tensors: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
