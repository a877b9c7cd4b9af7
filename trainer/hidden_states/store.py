"""Store hidden states in a directory of shards (trainer.storage.index) to which documents are added.

A shard is written whole before the index lists it, so a killed writer leaves nothing but a file that the next one
replaces; what is listed is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peagle_core.atomic import PARTIAL_SUFFIX, remove_leftovers
from peagle_core.config import NUM_AUX_STATES
from peagle_core.errors import InputError
from trainer.errors import ConfigError
from trainer.hidden_states.shards import DocumentStates, StateShard, document_key, write_states
from trainer.storage.index import INDEX, Contents, Entry, Index, read_index, shard_name, write_index
from trainer.storage.resumable import lock
from trainer.storage.settings import refuse_other_settings
from trainer.target.chat_date import CHAT_DATE

BYTES_PER_DOCUMENT = 16 + 8 + 32  # key, offset, checksum
# target: its digest; made by: engine and dtype. Who only reads need not agree about the last two.
MEANING = ("target", "hidden_size", "aux_layer_ids")
SETTINGS = (*MEANING, "dtype", "made by")
STATES = Contents(
    "stored states", "extract the states", settings=frozenset(SETTINGS), entry=("file", "bytes", "sha256")
)


class StateStore:
    """Holds states by token ids. tokens_per_shard: added documents are written when they reach that many tokens."""

    def __init__(self, directory: Path, settings: dict[str, Any], tokens_per_shard: int = 1) -> None:
        self.directory, self.settings, self.tokens_per_shard = directory, settings, tokens_per_shard
        self.dtype: torch.dtype = getattr(torch, settings["dtype"])
        self._places: dict[bytes, tuple[StateShard, int]] = {}
        self._pending: dict[bytes, DocumentStates] = {}
        self._known = 0
        self._open_shards(read_index(directory, STATES).shards)

    def size_of(self, documents: int, tokens: int) -> int:
        """Return the bytes that so much takes on disk, without the headers of files."""
        width = (NUM_AUX_STATES + 1) * self.settings["hidden_size"]
        return tokens * (width * self.dtype.itemsize + 4) + documents * BYTES_PER_DOCUMENT

    def __contains__(self, input_ids: Tensor) -> bool:
        key = document_key(input_ids)
        return key in self._places or key in self._pending

    def read(self, input_ids: Tensor) -> DocumentStates:
        """Return the states of a document that is there. Raises InputError when they are damaged or of other tokens."""
        key = document_key(input_ids)
        if key in self._pending:
            return self._pending[key]
        shard, number = self._places[key]
        found = shard[number]
        if not torch.equal(found.input_ids, input_ids):
            raise InputError(f"{shard.path}: document {number} has other token ids than the data; extract it again")
        return found

    def add(self, documents: Iterable[DocumentStates]) -> None:
        """Add what is not there yet. Raises InputError when a shard is due and the disk does not take it."""
        for document in documents:
            if document.input_ids not in self:
                self._pending[document_key(document.input_ids)] = DocumentStates(
                    document.input_ids, document.aux.to(self.dtype).cpu(), document.final_hidden.to(self.dtype).cpu()
                )
        if sum(len(d.input_ids) for d in self._pending.values()) >= self.tokens_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what was added and is not on disk yet; others may have added to the directory meanwhile."""
        if not self._pending:
            return
        try:
            with lock(self.directory, wait=True):
                remove_leftovers(self.directory)
                shards = read_index(self.directory, STATES).shards
                self._open_shards(shards)
                documents = [d for key, d in self._pending.items() if key not in self._places]
                if documents:
                    shards.append(write_states(self.directory / shard_name(len(shards)), documents))
                    write_index(self.directory, STATES, Index(self.settings, shards))
                    self._open_shards(shards)
        except OSError as error:
            raise cannot_be_written(self.directory, error) from None
        self._pending.clear()

    def remove_if_empty(self) -> None:
        """Remove the directory if it holds no states, after a refusal."""
        if not self._known:
            self.remove()

    def remove(self) -> None:
        """Delete the states, and the directory if nothing else is in it."""
        shards = read_index(self.directory, STATES).shards
        for name in (
            INDEX,
            CHAT_DATE,
            *(entry["file"] for entry in shards),
        ):  # the index first: it never lists what is gone
            (self.directory / name).unlink(missing_ok=True)
        if not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _open_shards(self, entries: list[Entry]) -> None:
        for entry in entries[self._known :]:
            shard = StateShard(self.directory / entry["file"], entry)
            for number, key in enumerate(shard.keys):
                self._places[key] = shard, number
        self._known = len(entries)


def read_store(directory: Path, meaning: dict[str, Any]) -> StateStore:
    """Open the store in `directory` to read from it. meaning: MEANING as this run has it.

    Raises ConfigError when the store's differs, and InputError when there is none or it is damaged.
    """
    if not (directory / INDEX).is_file():
        raise InputError(f"{directory / INDEX}: there is none, so no states are here; `peagle extract` them")
    found = read_index(directory, STATES).settings
    refuse_other_settings(directory, {key: found.get(key) for key in MEANING}, meaning)
    return StateStore(directory, found)


def store_to_add_to(directory: Path, settings: dict[str, Any], tokens_per_shard: int) -> StateStore:
    """Open the store in `directory`, which is made when it is not there. settings: SETTINGS as this run has them.

    Raises ConfigError when the store's differ or other files are there, InputError when it cannot be read or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with lock(directory, wait=True):
            if not (directory / INDEX).is_file():
                if any(PARTIAL_SUFFIX not in path.name for path in directory.iterdir()):
                    raise ConfigError(f"{directory}: holds other files and no {INDEX}; choose another directory")
                write_index(directory, STATES, Index(settings, []))
    except OSError as error:
        raise cannot_be_written(directory, error) from None
    refuse_other_settings(directory, read_index(directory, STATES).settings, settings)
    return StateStore(directory, settings, tokens_per_shard)


def cannot_be_written(directory: Path, error: OSError) -> InputError:
    return InputError(f"{directory}: cannot be written ({error.strerror or error}); run the same again to continue")
