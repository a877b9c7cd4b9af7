"""Which way a run of several processes is parallel where the configuration says `auto`; one process is none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer import distributed
from trainer.config import ConfigError, RunConfig
from trainer.dry_run import drafter_shape, fake_drafter, fixed_bytes, meta_target, target_size
from trainer.plan import GPU_SHARE, device_memory

# What must be left for activations, of what a step may take.
FOR_ACTIVATIONS = 0.25
COMMAND = "torchrun --nproc-per-node N -m trainer train ..."


def settle_parallel(config: RunConfig) -> RunConfig:
    """ddp or fsdp instead of auto, where there are more processes than one. The same answer in all of them.

    Raises ConfigError when a single process is told to be parallel, or all processes to use one GPU.
    """
    if distributed.size() == 1:
        if config.parallel != "auto":
            raise ConfigError(f"parallel: {config.parallel} is for several processes; start them with `{COMMAND}`")
        return config
    if ":" in config.device:
        raise ConfigError(f"device: {config.device} is one for {distributed.size()} processes; leave device: auto")
    if config.parallel != "auto":
        return config
    choice = distributed.from_main(_choose(config) if distributed.is_main() else "")
    return config.model_copy(update={"parallel": choice})


def _choose(config: RunConfig) -> str:
    """From sizes alone, as in a dry run."""
    target = meta_target(config)
    shape, size = drafter_shape(config, target), target_size(config, target)
    if config.states.source == "cache":
        size = replace(size, bytes=size.bytes - size.layers, layers=0)
    with FakeTensorMode():
        drafter = fake_drafter(config, shape)
        fixed = fixed_bytes(config, size, drafter, "ddp", distributed.size())
    room = GPU_SHARE * (1 - FOR_ACTIVATIONS) * device_memory(torch.device(config.device))
    return "ddp" if fixed.total <= room else "fsdp"
