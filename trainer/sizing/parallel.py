"""Which way a run of several processes is parallel where the configuration says `auto`; one process is none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.parallel import processes
from trainer.sizing.choose import GPU_SHARE, device_memory
from trainer.sizing.dry_run import drafter_shape, fake_drafter, fixed_bytes, meta_target, target_size

# What must be left for activations, of what a step may take.
FOR_ACTIVATIONS = 0.25
COMMAND = "torchrun --nproc-per-node N -m trainer train ..."


def settle_parallel(config: RunConfig) -> RunConfig:
    """ddp or fsdp instead of auto, where there are more processes than one. The same answer in all of them.

    Raises ConfigError when a single process is told to be parallel, or all processes to use one GPU.
    """
    if processes.size() == 1:
        if config.parallel != "auto":
            raise ConfigError(f"parallel: {config.parallel} is for several processes; start them with `{COMMAND}`")
        return config
    if ":" in config.device:
        raise ConfigError(f"device: {config.device} is one for {processes.size()} processes; leave device: auto")
    if config.parallel != "auto":
        return config
    choice = processes.from_main(_choose(config) if processes.is_main() else "")
    return config.model_copy(update={"parallel": choice})


def _choose(config: RunConfig) -> str:
    """From sizes alone, as in a dry run."""
    target = meta_target(config)
    shape, size = drafter_shape(config, target), target_size(config, target)
    if config.states.source == "cache":
        size = replace(size, bytes=size.bytes - size.layers, layers=0)
    with FakeTensorMode():
        drafter = fake_drafter(config, shape)
        fixed = fixed_bytes(config, size, drafter, "ddp", processes.size())
    room = GPU_SHARE * (1 - FOR_ACTIVATIONS) * device_memory(torch.device(config.device))
    return "ddp" if fixed.total <= room else "fsdp"
