"""Write the converted head: one tensor in memory at a time, in shards, complete or not there at all."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from peagle_core.atomic import new_directory
from peagle_core.draft_vocabulary import draft_vocab_ids, membership
from peagle_core.errors import InputError
from peagle_core.tensors import SHARED, TensorCheck, bare_name, is_finite
from tools.convert.plan import SPECULATORS, Plan
from tools.heads.head import Head, in_bytes
from tools.heads.target import Target

# As transformers does; a head below it is one model.safetensors.
SHARD_BYTES = 5_000_000_000


@contextmanager
def destination_directory(destination: Path, source: Head, dtype: torch.dtype | None) -> Iterator[Path]:
    """Yield the directory to write to; it becomes `destination` when the block ends well and vanishes otherwise.

    Raises InputError where it must not or cannot be written.
    """
    if source.directory.resolve() in destination.resolve().parents:
        raise InputError(f"{destination}: lies inside the head {source.directory}")
    if not destination.parent.is_dir():
        raise InputError(f"{destination.parent}: no such directory")
    needed = sum(_written_bytes(t.nbytes, t.shape, dtype) for t in source.tensors)
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise InputError(f"{destination}: needs {in_bytes(needed)}, the disk has {in_bytes(free)} left")
    try:
        with new_directory(destination) as partial:
            yield partial
    except FileExistsError:
        raise InputError(f"{destination}: exists already; nothing is ever overwritten") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{destination}: cannot be written ({error})") from None


def write_head(source: Head, plan: Plan, directory: Path, target: Target | None, dtype: torch.dtype | None) -> None:
    """Fill an empty directory with config.json and the weights. dtype: of the weights, None as stored.

    Raises InputError for whatever is wrong with a tensor. Adds to plan.changes what it did.
    """
    shards = Shards(directory)
    with tqdm(total=sum(t.nbytes for t in source.tensors), unit="B", unit_scale=True, disable=None) as bar:
        stored_dtype = None
        for name, tensor in _converted(source, plan, target, dtype, bar):
            if name == "fc.weight":
                stored_dtype = str(tensor.dtype).removeprefix("torch.")
            shards.add(name, tensor)
    shards.close()
    text = json.dumps(plan.config_dict(stored_dtype or "bfloat16"), indent=2)
    (directory / "config.json").write_text(text + "\n")


class Shards:
    """Write tensors in the order they come, a file whenever SHARD_BYTES are together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pending: dict[str, Tensor] = {}
        self.names: list[list[str]] = []
        self.total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        if self.pending and sum(t.nbytes for t in self.pending.values()) + tensor.nbytes > SHARD_BYTES:
            self._write()
        self.pending[name] = tensor.contiguous()

    def close(self) -> None:
        """Write the rest and give the files their final names; more than one get an index."""
        self._write()
        if len(self.names) == 1:
            self._part(1).rename(self.directory / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self.names, start=1):
            final = f"model-{number:05}-of-{len(self.names):05}.safetensors"
            self._part(number).rename(self.directory / final)
            where |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": where}
        (self.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        self.names.append(list(self.pending))
        self.total_bytes += sum(t.nbytes for t in self.pending.values())
        save_file(self.pending, self._part(len(self.names)), metadata={"format": "pt"})
        self.pending = {}

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number}"


def _converted(
    source: Head, plan: Plan, target: Target | None, dtype: torch.dtype | None, bar: tqdm
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of everything to write, checked, and note in plan.changes what happens to them."""
    check = TensorCheck(source.config, source.directory)
    renamed, cast, idle = [], [], []
    for file, name, tensor in source.stored():
        bare = bare_name(name)
        bar.update(tensor.nbytes)
        if bare == "t2d":
            _check_t2d(file, tensor, check)
        checked = check.take(file, name, tensor)
        if checked is None:
            if bare != "t2d" or plan.to != SPECULATORS:
                idle.append(bare)
        elif bare.startswith("correction.") and not plan.config.correction_rank:
            continue  # the plan says it
        elif bare == "d2t" and check.same_vocabulary:
            plan.changes.append("d2t: left out, the vocabularies are equal")
        else:
            result = _cast(file, bare, checked, dtype)
            if name != bare:
                renamed.append(f"{name} -> {bare}")
            if result.dtype != tensor.dtype:
                cast.append(f"{str(tensor.dtype).removeprefix('torch.')} -> {str(result.dtype).removeprefix('torch.')}")
            if result.shape != tensor.shape:
                plan.changes.append(f"{bare}: shape {list(tensor.shape)} -> {list(result.shape)}")
            if bare in SHARED and target is not None and _same_bits(result, target.tensor(bare)):
                plan.changes.append(f"{bare}: left out, bit-equal to the target's")
            else:
                yield bare, result
    check.finish()
    if plan.to == SPECULATORS and check.d2t is not None and not check.same_vocabulary:
        yield "t2d", _t2d(check)
    plan.changes += [f"{count} tensors cast, {kind}" for kind, count in Counter(cast).items()]
    if renamed:
        plan.changes.append(f"{len(renamed)} tensors renamed, such as {renamed[0]}")
    if idle:
        plan.changes.append(f"{len(idle)} tensors left out that no drafter reads: {', '.join(sorted(idle))}")


def _cast(file: Path, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    result = tensor.to(dtype)
    if not is_finite(result):
        raise InputError(f"{file}: tensor {name!r} has values too large for {str(dtype).removeprefix('torch.')}")
    return result


def _same_bits(ours: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    ours, theirs = (x.contiguous().view(-1).view(torch.uint8) for x in (ours, theirs))
    return torch.equal(ours, theirs)


def _t2d(check: TensorCheck) -> Tensor:
    """Return bool[V]: which target tokens the draft vocabulary holds."""
    assert check.d2t is not None
    return membership(draft_vocab_ids(check.d2t), check.config.vocab_size)


def _check_t2d(file: Path, t2d: Tensor, check: TensorCheck) -> None:
    """Raise InputError when it names other tokens than d2t, which comes before it.

    What is wrong with d2t alone is said elsewhere.
    """
    if check.d2t is not None and not check.d2t_problem() and not torch.equal(t2d.bool(), _t2d(check)):
        raise InputError(f"{file}: tensors 't2d' and 'd2t' name different tokens")


def _written_bytes(nbytes: int, shape: tuple[int, ...], dtype: torch.dtype | None) -> int:
    return nbytes if dtype is None else math.prod(shape) * max(dtype.itemsize, 1)
