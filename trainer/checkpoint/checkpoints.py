"""Training checkpoints: resume continues bit for bit, or refuses.

A checkpoint is a directory step-<n> with the fp32 weights and the optimizer's moments (`dcp_safetensors`) and
state.json (schedule, position, contract, the other files' sizes). Nothing is drawn from a running generator, so no
random state is kept. It appears under its name only when complete, and is the same whatever number of processes wrote
it or reads it. The contract says what the numbers mean (K, r, layers, mask id, data, ...): resuming under another one
is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peagle_core.atomic import new_directory
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from trainer.checkpoint.contract import check_contract
from trainer.checkpoint.dcp_safetensors import read_tensors, stored_tensors, write_tensors
from trainer.checkpoint.train_state import TrainState
from trainer.loss_guard import LossGuard
from trainer.parallel import processes

KEEP = 2
NAME = re.compile(r"step-(\d{8})")
RECORD = "state.json"
# "fc.weight" is a weight, "fc.weight:exp_avg" one of its moments.
OF = ":"


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the complete checkpoint with the most steps, if any."""
    return max(_checkpoints(directory), default=None)


def is_checkpoint(path: Path) -> bool:
    """Say whether a directory is a training checkpoint (and not a head directory)."""
    return (path / RECORD).is_file()


def is_moment(name: str) -> bool:
    """Say whether a tensor of a checkpoint is the optimizer's (and not a weight)."""
    return OF in name


def save_checkpoint(directory: Path, state: TrainState, contract: dict[str, Any]) -> Path:
    """Write directory/step-<n>, all processes together, and drop all but the newest KEEP.

    While the loss climbs (trainer.loss_guard), the newest one from before that stays too.
    """
    path = directory / f"step-{state.step:08d}"
    try:
        with _new_checkpoint(path) as partial:
            write_tensors(partial, {**state.drafter.state_dict(), **_moments(state)})
            if processes.is_main():
                (partial / RECORD).write_text(json.dumps(_record(partial, state, contract), indent=1))
        if processes.is_main():
            _drop_old(directory, state)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error})") from None
    processes.barrier()
    return path


def tensor_files(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint.

    Raises InputError unless all that were written are there in full: without one, a tensor could have a hole.
    """
    there, written = _sizes(path), _read_record(path).get("files", {})
    for name, size in written.items():
        if there.get(name) != size:
            found = f"has {there[name]} bytes" if name in there else "is missing"
            raise InputError(f"{path / name}: {found}; {size} were written")
    return [path / name for name in written]


def load_checkpoint(path: Path, state: TrainState, contract: dict[str, Any]) -> None:
    """Put a freshly built state where the checkpoint left off. Raises InputError when the contract differs."""
    record = _read_record(path)
    check_contract(path, record["contract"], contract)
    tensor_files(path)
    tensors, parameters = dict(state.drafter.state_dict()), dict(state.drafter.named_parameters())
    for name, (shape, dtype) in stored_tensors(path).items():
        owner, _, key = name.partition(OF)
        if key:
            parameter = parameters[owner]
            whole = shape == parameter.shape  # and not AdamW's count of steps, which stays on the CPU
            moment = torch.zeros_like(parameter) if whole else torch.zeros(shape, dtype=dtype)
            state.optimizer_state(parameter)[key] = tensors[name] = moment
    read_tensors(path, tensors)
    for optimizer, scheduler, schedule in zip(state.optimizers, state.schedulers, record["schedules"], strict=True):
        scheduler.load_state_dict({**scheduler.state_dict(), **schedule})
        for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
    state.step = record["step"]
    state.sampler.position = record["sampler_position"]
    state.guard = LossGuard(**record["guard"])


def load_weights(path: Path, drafter: PEagleDrafter) -> None:
    """Read only the drafter's weights."""
    tensor_files(path)
    read_tensors(path, dict(drafter.state_dict()))


def load_trained(path: Path) -> PEagleDrafter:
    """Load the drafter of a checkpoint, float32; also one with a hidden-state design that has no other file format."""
    drafter = PEagleDrafter(PEagleConfig.from_dict(read_contract(path)["drafter"]))
    load_weights(path, drafter)
    return drafter


def read_contract(path: Path) -> dict[str, Any]:
    """Return what the checkpoint was trained as. Raises InputError when it cannot be read."""
    return _read_record(path)["contract"]


def read_step(path: Path) -> int:
    """Return the optimizer steps done."""
    return _read_record(path)["step"]


@contextmanager
def _new_checkpoint(path: Path) -> Iterator[Path]:
    """Yield the directory that all processes fill; the first one makes it and gives it its name."""
    with new_directory(path, existing="replace") if processes.is_main() else nullcontext(path) as partial:
        yield processes.from_main(partial)


def _record(partial: Path, state: TrainState, contract: dict[str, Any]) -> dict[str, Any]:
    """Return what state.json says: everything but the tensors."""
    schedules = [{key: value for key, value in s.state_dict().items() if key != "lr_lambdas"} for s in state.schedulers]
    return {
        "step": state.step,
        "sampler_position": state.sampler.position,
        "schedules": schedules,
        "guard": asdict(state.guard),
        "contract": contract,
        "files": _sizes(partial),
    }


def _drop_old(directory: Path, state: TrainState) -> None:
    found = sorted(_checkpoints(directory))
    good = [p for p in found if int(p.name[-8:]) <= state.step - state.guard.climbing]
    for old in {*found[:-KEEP]} - {*good[-1:]}:
        shutil.rmtree(old)


def _checkpoints(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if NAME.fullmatch(path.name)]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / RECORD).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: the checkpoint cannot be read ({error})") from None


def _sizes(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(directory.glob("*.safetensors"))}


def _moments(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}{OF}{key}": value
        for name, parameter in state.drafter.named_parameters()
        if parameter.requires_grad
        for key, value in state.optimizer_state(parameter).items()
    }
