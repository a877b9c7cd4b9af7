"""Named tensors in a directory of safetensors files, written and read by all processes at once.

torch's distributed checkpoint in its Hugging Face storage: every process writes what it holds (of replicated tensors
each is written once), a header says which part of a tensor a file has, and any number of processes reads it back, each
its own parts. No pickle anywhere.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor

from peagle_core.errors import InputError, one_line
from trainer.parallel import processes

# A process copies what it writes into one file to the CPU, twice.
FILE_BYTES = 2**31


def write_tensors(directory: Path, tensors: dict[str, Tensor], file_bytes: int = FILE_BYTES) -> None:
    """Write tensors, each process what it holds.

    tensors: DTensors, or what is the same in every process. Raises InputError in every process when one fails.
    """
    file_of, room = {}, 0
    number = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > room:
            number, room = number + 1, file_bytes
        file_of[name] = number
        room -= tensor.nbytes
    writer = dcp.HuggingFaceStorageWriter(str(directory), file_of, save_distributed=True)
    _run(directory, "written", lambda: dcp.save(tensors, storage_writer=writer, no_dist=processes.size() == 1))


def read_tensors(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill the tensors in place, whatever number of processes wrote them. Raises InputError where one does not fit."""
    reader = dcp.HuggingFaceStorageReader(str(directory))
    _run(directory, "read", lambda: dcp.load(tensors, storage_reader=reader, no_dist=processes.size() == 1))


def stored_tensors(directory: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return whole shapes and dtypes, by name. Raises InputError for an unreadable file."""
    try:
        entries: dict[str, Any] = {**dcp.HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{directory}: cannot be read ({error})") from None
    return {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()}


def holds_parts(header: dict[str, str] | None) -> bool:
    """Return whether a file's header says that tensors in it begin elsewhere: several processes wrote them."""
    places = json.loads((header or {}).get("DCP_SHARDING_INFO", "{}"))
    return any(any(entry["saved_offsets"]) for entry in places.values())


def _run(directory: Path, done: str, work: Callable[[], Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:
            work()
        except dcp.CheckpointException as error:  # in every process, whichever failed
            reason, _ = next(iter(error.failures.values()))
            raise processes.everywhere(f"{directory}: cannot be {done} ({one_line(reason)})") from None
