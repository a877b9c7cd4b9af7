"""The tensors of a checkpoint, one at a time: their names, files and checks.

Every spelling that exists is taken, everything else refused in one sentence that names file, tensor, expected and found
shape. The loader (`peagle_core.checkpoint`) keeps what passes, the converter (`tools.convert`) writes it on; the checks
themselves hold no tensor but d2t.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peagle_core.config import PEagleConfig
from peagle_core.draft_vocabulary import draft_vocab_ids
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError

# Tensors that trainers leave in a checkpoint and a drafter does not need.
IGNORED = ("t2d", "verifier_lm_head.weight", "verifier_norm.weight")
# Taken from the target where a checkpoint has none of its own.
SHARED = ("embed_tokens.weight", "lm_head.weight")
# (file or directory for messages, name as stored, tensor)
Stored = tuple[str | Path, str, Tensor]
FINITE_CHUNK = 1 << 24


def bare_name(name: str) -> str:
    """Turn `model.midlayer.x` (NeMo, EAGLE-3) into `layers.0.x` (vLLM's plain format)."""
    name = name.removeprefix("model.")
    return "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name


def expected_shapes(config: PEagleConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a complete checkpoint, d2t included."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in PEagleDrafter(config).state_dict().items()}


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sharded or not. Raises InputError where there are none."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            return sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"{index}: no shard index with a 'weight_map' from tensors to files") from None
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in directory.glob("*.bin")] + [p.name for p in directory.glob("*.pt")]
        hint = f" (pickle files such as {pickles[0]} are never read)" if pickles else ""
        raise InputError(f"{directory}: no *.safetensors file{hint}")
    return files


def stored_tensors(files: Iterable[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield (file, name, tensor) of every tensor, read when asked for.

    Raises InputError for an unreadable file.
    """
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, safe_open is no mapping
                    yield path, name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: unreadable safetensors file ({error})") from None


def checked_tensors(stored: Iterable[Stored], config: PEagleConfig, where: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield bare name and tensor of everything a drafter needs, in the order it comes.

    where: the checkpoint, for messages.
    Raises InputError for a missing (shown at the end), unknown, misshapen, duplicate or non-finite tensor.
    """
    check = TensorCheck(config, where)
    for file, name, tensor in stored:
        checked = check.take(file, name, tensor)
        if checked is not None:
            yield bare_name(name), checked
    check.finish()


class TensorCheck:
    """What is right and wrong with a checkpoint's tensors, taken one by one."""

    def __init__(self, config: PEagleConfig, where: str | Path) -> None:
        self.config, self.where = config, where
        self.expected = expected_shapes(config)
        self.same_vocabulary = config.draft_vocab_size == config.vocab_size
        self.seen: set[str] = set()
        self.d2t: Tensor | None = None

    def is_idle(self, name: str) -> bool:
        """Return whether it is a leftover that no drafter reads.

        vLLM's layer class carries an unused hidden_norm in layers >= 1, and exporters copy it into the file.
        """
        bare = bare_name(name)
        return bare in IGNORED or (bare.endswith(".hidden_norm.weight") and bare not in self.expected)

    def take(self, file: str | Path, name: str, tensor: Tensor) -> Tensor | None:
        """Return the tensor in its canonical shape, None for a leftover. Raises InputError when something is wrong."""
        bare = bare_name(name)
        if self.is_idle(name):
            return None
        if bare in self.seen:
            raise InputError(f"{file}: tensor {name!r} is there twice")
        self.seen.add(bare)
        checked = _check(file, name, tensor, self.expected.get(bare))
        if bare == "d2t":
            self.d2t = checked
        return checked

    def finish(self) -> None:
        """Check what came, after the last tensor.

        Raises InputError when something is missing, or d2t is no map.
        """
        missing = self.missing()
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            shape = self.expected[missing[0]]
            raise InputError(f"{self.where}: tensor {missing[0]!r} is missing{more}; expected shape {shape}")
        problem = self.d2t_problem()
        if problem:
            raise InputError(problem)

    def missing(self) -> list[str]:
        optional = {*SHARED, "d2t"} if self.same_vocabulary else set(SHARED)
        return sorted(set(self.expected) - self.seen - optional)

    def d2t_problem(self) -> str | None:
        if self.d2t is None:
            return None
        ids = draft_vocab_ids(self.d2t.cpu())
        if self.same_vocabulary and self.d2t.any():
            return f"{self.where}: 'd2t' permutes a draft vocabulary that is as large as the target's"
        vocab = self.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocab or len(ids.unique()) != len(ids):
            return f"{self.where}: 'd2t' is no one-to-one map into the target vocabulary of {vocab}"
        return None


def _check(where: str | Path, name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    if shape is None:
        raise InputError(f"{where}: tensor {name!r} belongs to no P-EAGLE drafter of this config")
    if bare_name(name) == "mask_hidden" and tensor.numel() == shape[-1]:
        tensor = tensor.view(shape)
    if tuple(tensor.shape) != shape:
        raise InputError(f"{where}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
    if bare_name(name) == "d2t":
        if tensor.dtype not in (torch.int64, torch.int32):
            raise InputError(f"{where}: tensor 'd2t' has dtype {tensor.dtype}, expected int64")
        return tensor.long()
    if not tensor.is_floating_point():
        raise InputError(f"{where}: tensor {name!r} has dtype {tensor.dtype}, expected floating point")
    if not is_finite(tensor):
        raise InputError(f"{where}: tensor {name!r} has values that are not finite")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers are finite, looking at a part at a time.

    So the check itself needs little memory, however large the tensor.
    """
    return all(bool(torch.isfinite(part.float()).all()) for part in tensor.reshape(-1).split(FINITE_CHUNK))
