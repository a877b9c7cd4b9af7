"""Training checkpoints: resume continues bit for bit, or refuses.

A checkpoint is a directory step-<n> with drafter.safetensors (fp32 weights), optimizer.safetensors (the moments by
parameter name), rng.safetensors and state.json (schedule, position, contract); no pickle. It appears under its name
only when complete. The contract says what the numbers mean (K, r, layers, mask id, data, ...): resuming under another
one is refused.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from peagle_core.config_formats import config_from_dict
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from trainer.atomic import new_directory
from trainer.sampler import RowSampler

KEEP = 2
NAME = re.compile(r"step-(\d{8})")


@dataclass
class TrainState:
    """Everything that changes during training. cod: the generator that draws elements; step: optimizer steps done;
    tokens: seen since this process started.
    """

    drafter: PEagleDrafter
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[LambdaLR]
    sampler: RowSampler
    cod: torch.Generator
    total_steps: int
    step: int = 0
    tokens: int = 0

    @property
    def learning_rate(self) -> float:
        return float(self.schedulers[0].get_last_lr()[0])

    def optimizer_state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """The moments its optimizer keeps for a parameter: live, and empty before the first step."""
        (owner,) = (o for o in self.optimizers if any(p is parameter for g in o.param_groups for p in g["params"]))
        return owner.state[parameter]


def newest_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint with the most steps."""
    found = [path for path in directory.glob("step-*") if NAME.fullmatch(path.name)]
    return max(found, default=None)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a training checkpoint (and not a head directory)."""
    return (path / "state.json").is_file()


def save_checkpoint(directory: Path, state: TrainState, contract: dict[str, Any]) -> Path:
    """Write directory/step-<n> and drop all but the newest KEEP."""
    path = directory / f"step-{state.step:08d}"
    try:
        with new_directory(path) as partial:
            save_file(_cpu(state.drafter.state_dict()), partial / "drafter.safetensors")
            save_file(_cpu(_moments(state)), partial / "optimizer.safetensors")
            save_file(_rng(state), partial / "rng.safetensors")
            schedules = [
                {key: value for key, value in s.state_dict().items() if key != "lr_lambdas"} for s in state.schedulers
            ]
            record = {
                "step": state.step,
                "sampler_position": state.sampler.position,
                "schedules": schedules,
                "python_random": random.getstate(),
                "contract": contract,
            }
            (partial / "state.json").write_text(json.dumps(record, indent=1))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error})") from None
    for old in sorted(p for p in directory.glob("step-*") if NAME.fullmatch(p.name))[:-KEEP]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path, state: TrainState, contract: dict[str, Any]) -> None:
    """Put a freshly built state where the checkpoint left off. Raises InputError when the contract differs."""
    record = _read_record(path)
    check_contract(path, record["contract"], contract)
    load_weights(path, state.drafter)
    moments, rng = _read_file(path / "optimizer.safetensors"), _read_file(path / "rng.safetensors")
    for name, parameter in state.drafter.named_parameters():
        if parameter.requires_grad:
            prefix = f"{name}:"
            own = {key.removeprefix(prefix): t for key, t in moments.items() if key.startswith(prefix)}
            # The step count stays on the CPU, where AdamW keeps it.
            state.optimizer_state(parameter).update(
                {key: t if key == "step" else t.to(parameter.device) for key, t in own.items()}
            )
    for optimizer, scheduler, schedule in zip(state.optimizers, state.schedulers, record["schedules"], strict=True):
        scheduler.load_state_dict({**scheduler.state_dict(), **schedule})
        for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
    state.step = record["step"]
    state.sampler.position = record["sampler_position"]
    version, values, gauss = record["python_random"]
    random.setstate((version, tuple(values), gauss))
    torch.set_rng_state(rng["torch"])
    state.cod.set_state(rng["cod"])
    if torch.cuda.is_available() and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"])


def load_weights(path: Path, drafter: PEagleDrafter) -> None:
    """Only the drafter's weights."""
    drafter.load_state_dict(_read_file(path / "drafter.safetensors"))


def load_trained(path: Path) -> PEagleDrafter:
    """The drafter of a checkpoint, fp32; also one with a hidden-state design that has no other file format."""
    drafter = PEagleDrafter(config_from_dict(read_contract(path)["drafter"]))
    load_weights(path, drafter)
    return drafter


def read_contract(path: Path) -> dict[str, Any]:
    """What the checkpoint was trained as. Raises InputError when it cannot be read."""
    return _read_record(path)["contract"]


def read_step(path: Path) -> int:
    """Optimizer steps done."""
    return _read_record(path)["step"]


def check_contract(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError naming the first entry that differs."""
    now, then = ({**x, **x["drafter"], "drafter": None} for x in (json.loads(json.dumps(now)), then))
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{path}: was trained with {key} = {then.get(key)}, this run says {now.get(key)}; "
                "resume with the same value or choose another output_dir"
            )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "state.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: the checkpoint cannot be read ({error})") from None


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _moments(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{name}:{key}": value
        for name, parameter in state.drafter.named_parameters()
        if parameter.requires_grad
        for key, value in state.optimizer_state(parameter).items()
    }


def _rng(state: TrainState) -> dict[str, Tensor]:
    rng = {"torch": torch.get_rng_state(), "cod": state.cod.get_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return rng


def _cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
