"""How a step runs where the configuration says `auto`: flat where its activations fit, else stream.

Decided from estimates and from the size of the memory, not from what is free at the moment, so that the same
configuration makes the same choice when a run is resumed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.training import NUM_SEGMENTS, ActivationCosts, activation_costs, default_chunk_rows
from trainer.config import RunConfig
from trainer.config.sections import DrafterConfig
from trainer.parallel.processes import local_size, size

# The rest is for the allocator's gaps, other work on a CPU machine, and what the estimate misses.
GPU_SHARE, CPU_SHARE = 0.85, 0.5
# Weights, gradients and AdamW's two moments, all float32.
BYTES_TRAINED, BYTES_FROZEN = 16, 4
# Sharded: weights and gradients are whole while a step runs; weights and moments in pieces at any time.
BYTES_WHOLE, BYTES_PIECES = 8, 12


@dataclass(frozen=True)
class Plan:
    """activations: bytes, an estimate; chunk_rows: None where the mode has no chunks."""

    mode: str
    chunk_rows: int | None
    recompute: bool
    activations: int


def num_elements(slots: int, cod: DrafterConfig) -> int:
    """Elements of a row whose every slot is supervised: an upper bound."""
    return int(slots * sum(max(cod.retention**d, cod.retention_min) for d in range(cod.num_depths)))


def drafter_costs(config: RunConfig, drafter: PEagleDrafter) -> dict[bool, ActivationCosts]:
    """By activation checkpointing, off and on."""
    device = drafter.fc.weight.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
        return {
            recompute: activation_costs(drafter, config.attention_backend, recompute) for recompute in (False, True)
        }


def make_plan(config: RunConfig, costs: dict[bool, ActivationCosts], budget: int, device_type: str) -> Plan:
    """The configured mode, or the first that fits `budget` bytes: flat, stream, stream with activation checkpointing.

    Raises InputError when mode is auto and nothing fits.
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
    needed = costs[True].stream(slots, 64) / 2**30
    raise InputError(
        f"rows of {slots} tokens need {needed:.2f} GiB for activations and {max(0, budget) / 2**30:.2f} GiB are there; "
        "choose a smaller data.row_length, drafter.draft_vocab_size or target, or set mode to run regardless"
    )


def settle(config: RunConfig, drafter: PEagleDrafter, target_bytes: int) -> RunConfig:
    """The configuration with mode auto replaced by what it means for this drafter on this machine."""
    if config.mode != "auto":
        return config
    device = torch.device(config.device)
    share = GPU_SHARE if device.type == "cuda" else CPU_SHARE
    fixed = target_bytes + state_bytes(drafter, size() if config.parallel == "fsdp" else 1)
    fixed += batch_bytes(config, drafter, size())
    budget = int(share * device_memory(device)) - fixed
    plan = make_plan(config, drafter_costs(config, drafter), budget, device.type)
    how = f", chunks of {plan.chunk_rows} elements" if plan.chunk_rows else ""
    how += ", activation checkpointing" if plan.recompute else ""
    print(f"mode: {plan.mode}{how}; activations up to {plan.activations / 2**30:.2f} GiB (estimate)")
    settled = {"mode": plan.mode, "chunk_rows": plan.chunk_rows, "activation_checkpointing": plan.recompute}
    return config.model_copy(update={**settled, "memory_budget_gib": None})


def state_bytes(drafter: PEagleDrafter, shards: int = 1) -> int:
    """Weights, gradients and optimizer moments in float32, of one process of `shards` that divide them."""
    trained = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in drafter.parameters() if not p.requires_grad)
    if shards == 1:
        return trained * BYTES_TRAINED + frozen * BYTES_FROZEN
    return trained * (BYTES_WHOLE + BYTES_PIECES // shards) + frozen * (BYTES_FROZEN + BYTES_FROZEN // shards)


def batch_bytes(config: RunConfig, drafter: PEagleDrafter, processes: int = 1) -> int:
    """The target's states of one optimizer step in one process, float32: its rows are all there before the first
    backward pass.
    """
    width = drafter.config.fused_size + drafter.config.target_hidden_size
    return math.ceil(config.optim.rows_per_step / processes) * config.data.row_length * width * 4


def device_memory(device: torch.device) -> int:
    """All of it, used or not: of a GPU, or this process's share of the machine or container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (memory if text == "max" else min(memory, int(text))) // local_size()
