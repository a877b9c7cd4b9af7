"""How a run goes where the configuration leaves it open: flat or stream, in which chunks, and ddp or fsdp.

Decided once per run, from estimates and from the size of the memory, not from what is free at the moment, so that the
same configuration makes the same choice when a run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.training import NUM_SEGMENTS, ActivationCosts, default_chunk_rows
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.parallel import processes
from trainer.sizing.sizes import (
    GIB,
    batch_bytes,
    device_memory,
    drafter_costs,
    drafter_shape,
    fake_drafter,
    fixed_bytes,
    meta_target,
    num_elements,
    state_bytes,
    target_size,
)

# The rest is for the allocator's gaps, other work on a CPU machine, and what the estimate misses.
GPU_SHARE, CPU_SHARE = 0.85, 0.5
# What must be left of it for activations, of what a step may take.
FOR_ACTIVATIONS = 0.25
COMMAND = "torchrun --nproc-per-node N -m peagle train ..."


@dataclass(frozen=True)
class Plan:
    """activations: bytes, an estimate; chunk_rows: None where the mode has no chunks."""

    mode: str
    chunk_rows: int | None
    recompute: bool
    activations: int


def make_plan(config: RunConfig, costs: dict[bool, ActivationCosts], budget: int, device_type: str) -> Plan:
    """Return the configured mode, or the first that fits `budget` bytes: flat, stream, stream with recomputation.

    A budget of the configuration's own goes before `budget`. Raises InputError when nothing fits.
    """
    slots, recompute = config.data.row_length, config.activation_checkpointing
    elements, cost = num_elements(slots, config.drafter), costs[recompute]
    budget = config.memory_budget or budget
    if config.mode == "partition":
        segments = config.num_segments or NUM_SEGMENTS
        return Plan("partition", None, recompute, cost.flat(slots + (elements - slots) // segments))
    flat = Plan("flat", None, recompute, cost.flat(elements))
    if config.mode == "flat" or (config.mode == "auto" and config.chunk_rows is None and flat.activations <= budget):
        return flat
    if config.chunk_rows is not None:
        return Plan("stream", config.chunk_rows, recompute, cost.stream(slots, config.chunk_rows))
    usual = default_chunk_rows(device_type)
    if config.mode == "stream" and config.memory_budget is None:
        return Plan("stream", usual, recompute, cost.stream(slots, usual))
    for with_recompute in sorted({recompute, True}):
        cost = costs[with_recompute]
        try:
            rows = min(usual, cost.chunk_rows_within(budget, slots))
        except InputError:
            continue
        return Plan("stream", rows, with_recompute, cost.stream(slots, rows))
    needed = costs[True].stream(slots, 64) / GIB
    way_out = "raise memory_budget_gib" if config.memory_budget else "set mode to run regardless"
    raise InputError(
        f"rows of {slots} tokens need {needed:.2f} GiB for activations and {max(0, budget) / GIB:.2f} GiB are there; "
        f"choose a smaller data.row_length, drafter.draft_vocab_size or target, or {way_out}"
    )


def settle(config: RunConfig, drafter: PEagleDrafter, target_bytes: int) -> RunConfig:
    """Return the configuration with mode auto and a memory budget replaced by what they mean for this drafter here.

    The drafter is probed, once per run. Raises InputError when nothing fits.
    """
    if config.mode != "auto" and config.memory_budget is None:
        return config
    device = torch.device(config.device)
    share = GPU_SHARE if device.type == "cuda" else CPU_SHARE
    fixed = target_bytes + state_bytes(drafter, processes.size() if config.parallel == "fsdp" else 1)
    fixed += batch_bytes(config, drafter, processes.size())
    budget = int(share * device_memory(device)) - fixed
    plan = make_plan(config, drafter_costs(config, drafter), budget, device.type)
    how = f", chunks of {plan.chunk_rows} elements" if plan.chunk_rows else ""
    how += ", activation checkpointing" if plan.recompute else ""
    print(f"mode: {plan.mode}{how}; activations up to {plan.activations / GIB:.2f} GiB (estimate)")
    settled = {"mode": plan.mode, "chunk_rows": plan.chunk_rows, "activation_checkpointing": plan.recompute}
    return config.model_copy(update={**settled, "memory_budget_gib": None})


def settle_parallel(config: RunConfig) -> RunConfig:
    """Return the configuration with parallel auto replaced by ddp or fsdp where there are several processes.

    All of them get the same answer.

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
    choice = processes.from_main(_choose_parallel(config) if processes.is_main() else "")
    return config.model_copy(update={"parallel": choice})


def _choose_parallel(config: RunConfig) -> str:
    """Return ddp where target and drafter fit one GPU, else fsdp: from sizes alone, as in a dry run."""
    target = meta_target(config)
    shape, size = drafter_shape(config, target), target_size(config, target)
    if config.states.source == "cache":
        size = replace(size, bytes=size.bytes - size.layers, layers=0)
    with FakeTensorMode():
        drafter = fake_drafter(config, shape)
        fixed = fixed_bytes(config, size, drafter, "ddp", processes.size())
    room = GPU_SHARE * (1 - FOR_ACTIVATIONS) * device_memory(torch.device(config.device))
    return "ddp" if fixed.total <= room else "fsdp"
