"""Find out what a head's directory is: its format, its config, its weight files. Nothing is loaded yet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import NEMO_ARCHITECTURE, load_config_dict
from peagle_core.errors import InputError
from peagle_core.tensors import bare_name, expected_shapes, weight_files
from trainer.checkpoint.checkpoints import is_moment, read_contract, tensor_files
from trainer.checkpoint.dcp_safetensors import holds_parts

TRAINING, SPECULATORS, NEMO, FLAT = "training checkpoint", "speculators", "NeMo", "flat"


@dataclass(frozen=True)
class StoredTensor:
    """Hold one tensor's place, and what its file's header says of it. nbytes: as stored."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int

    @property
    def bare(self) -> str:
        return bare_name(self.name)


@dataclass(frozen=True)
class HeadFiles:
    """Hold a head on disk before anything is checked.

    raw: its config as written (a training checkpoint's contract).
    """

    directory: Path
    format: str
    raw: dict[str, Any]
    config_file: Path
    weights: list[Path]


@dataclass(frozen=True)
class Head:
    """Hold a head whose config is sound.

    tensors: in the order of the drafter's own state, whatever the files' order.
    """

    files: HeadFiles
    config: PEagleConfig
    tensors: list[StoredTensor]

    @property
    def directory(self) -> Path:
        return self.files.directory

    def stored(self) -> Iterator[tuple[Path, str, Tensor]]:
        """Yield (file, name, tensor), each read when asked for. Raises InputError for an unreadable file."""
        for tensor in self.tensors:
            yield tensor.file, tensor.name, read_tensor(tensor)

    def has(self, bare: str) -> bool:
        return any(tensor.bare == bare for tensor in self.tensors)


def open_head(directory: Path) -> Head:
    """Open a head. Raises InputError when it is none, its config is wrong or a file is unreadable."""
    files = find_files(directory)
    try:
        config = PEagleConfig.from_dict(files.raw)
    except InputError as error:
        raise InputError(f"{files.config_file}: {error}") from None
    rank = {name: i for i, name in enumerate(expected_shapes(config))}
    tensors = [tensor for path in files.weights for tensor in list_tensors(path)]
    return Head(files, config, sorted(tensors, key=lambda t: (rank.get(t.bare, len(rank)), t.name)))


def find_files(directory: Path) -> HeadFiles:
    """Find the files of a head. Raises InputError when the directory is none, or a file lies elsewhere."""
    record = directory / "state.json"
    if record.is_file() and not (directory / "config.json").is_file():
        raw, weights = _contract(directory, record), tensor_files(directory)
        _check_inside(directory, record, *weights)
        return HeadFiles(directory, TRAINING, raw, record, weights)
    raw, config_file = load_config_dict(directory), directory / "config.json"
    weights = weight_files(directory)
    _check_inside(directory, config_file, *weights)
    return HeadFiles(directory, _format(raw), raw, config_file, weights)


def list_tensors(path: Path) -> list[StoredTensor]:
    """List what the header of a safetensors file says, without the moments of a training checkpoint.

    Raises InputError when the file is unreadable or has parts of tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            if holds_parts(file.metadata()):
                raise InputError(f"{path}: has parts of tensors; `peagle export` joins them to a head")
            found = []
            for name in file.keys():  # noqa: SIM118, safe_open is no mapping
                if is_moment(name):
                    continue
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                found.append(StoredTensor(path, name, shape, dtype, _nbytes(shape, dtype)))
            return found
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: unreadable safetensors file ({error})") from None


def read_tensor(tensor: StoredTensor) -> Tensor:
    """Read one tensor; its file is opened for it alone, so that the memory of the one before is given back."""
    try:
        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(tensor.name)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{tensor.file}: unreadable safetensors file ({error})") from None


def in_bytes(count: int) -> str:
    """Say a number of bytes in decimal units: 1234567 -> 1.23 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def _format(raw: dict[str, Any]) -> str:
    if "transformer_layer_config" in raw or "speculators_config" in raw:
        return SPECULATORS
    return NEMO if NEMO_ARCHITECTURE in (raw.get("architectures") or []) else FLAT


def _contract(directory: Path, record: Path) -> dict[str, Any]:
    try:
        raw = read_contract(directory)["drafter"]
    except (KeyError, TypeError):
        raise InputError(f"{record}: says nothing of a drafter, so this is no training checkpoint of ours") from None
    if not isinstance(raw, dict):
        raise InputError(f"{record}: the drafter's config is no object")
    return raw


def _check_inside(directory: Path, *files: Path) -> None:
    """Refuse a file outside the directory, for a link that leads out could hand us any file.

    Only the Hugging Face cache may do that: its snapshots/<revision>/ link to blobs/ beside them.
    """
    root = directory.resolve()
    allowed = [root] + ([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])
    for file in files:
        if not any(file.resolve().is_relative_to(place) for place in allowed):
            raise InputError(f"{file}: leads out of {directory}, to {file.resolve()}; copy the file in its place")


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return a tensor's size in bytes. dtype: safetensors' name, such as BF16, F8_E4M3 or BOOL."""
    digits = "".join(c for c in dtype.split("_")[0] if c.isdigit())
    return math.prod(shape) * (int(digits) // 8 if digits else 1)
