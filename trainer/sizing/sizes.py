"""What target, drafter and a step's batch take of the memory, from shapes alone: no weights, no data, estimates."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError, first_line
from peagle_core.target import target_head
from peagle_core.training import ActivationCosts, activation_costs
from trainer.config import RunConfig
from trainer.config.sections import DrafterConfig
from trainer.new_drafter import check_widths, drafter_config, freeze
from trainer.parallel.processes import local_size
from trainer.target.load import embedding
from trainer.target.sharded import target_layers

GIB = 2**30
# Weights, gradients and AdamW's two moments, all float32.
BYTES_TRAINED, BYTES_FROZEN = 16, 4
# Sharded: weights and gradients are whole while a step runs; weights and moments in pieces at any time.
BYTES_WHOLE, BYTES_PIECES = 8, 12


@dataclass(frozen=True)
class TargetSize:
    """Hold what a target weighs.

    parameters: all; active: those one token meets outside embedding and head; bytes: of the frozen weights; layers: of
    those, what can be sharded, and layer, the most that is gathered of it at a time.
    states: bytes of the hidden states of all layers that a forward pass over one row leaves.
    """

    parameters: int
    active: float
    bytes: int
    layers: int
    layer: int
    states: int
    dtype: str


@dataclass(frozen=True)
class Fixed:
    """Bytes of one GPU whatever the mode: the frozen target, the drafter's training state, the states of its rows."""

    target: int
    drafter: int
    batch: int

    @property
    def total(self) -> int:
        return self.target + self.drafter + self.batch

    def words(self, trained: int) -> str:
        return (
            f"{self.target / GIB:.1f} GiB target, {self.drafter / GIB:.1f} GiB drafter ({trained / 1e6:.0f}M trained "
            f"parameters: weights, gradients, two Adam moments in fp32), {self.batch / GIB:.1f} GiB target states of "
            "a step"
        )


def meta_target(config: RunConfig) -> PreTrainedModel:
    """Make the target on the meta device, from its config alone. Raises InputError where there is none."""
    try:
        loaded = AutoConfig.from_pretrained(config.target)
        dtype = config.target_dtype
        wanted = getattr(torch, dtype) if dtype != "auto" else loaded.get_text_config().dtype or torch.bfloat16
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(loaded, dtype=wanted)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"the config of target {config.target!r} cannot be loaded ({first_line(error)})") from None


def target_size(config: RunConfig, target: PreTrainedModel) -> TargetSize:
    """Count the target's parameters, and the states of one row."""
    text = target.config.get_text_config()
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None) or 1
    share = (getattr(text, "num_experts_per_tok", None) or 1) / experts
    ends = {id(target.get_input_embeddings().weight), id(target.get_output_embeddings().weight)}
    inner = [(name, p) for name, p in target.named_parameters() if id(p) not in ends]
    language = [(name, p) for name, p in inner if not any(part in name for part in ("vision", "multi_modal"))]
    active = sum(p.numel() * (share if ".experts." in name else 1) for name, p in language)
    width = torch.finfo(target.dtype).bits // 8
    states = config.data.row_length * (text.num_hidden_layers + 1) * text.hidden_size * width
    total = sum(p.numel() for p in target.parameters())
    layers = [width * sum(p.numel() for p in layer.parameters()) for layer in target_layers(target)]
    layer = 2 * max(layers, default=0)  # the next one is gathered while one runs
    return TargetSize(
        total, active, total * width, sum(layers), layer, states, str(target.dtype).removeprefix("torch.")
    )


def drafter_shape(config: RunConfig, target: PreTrainedModel) -> PEagleConfig:
    """Return the shape of the drafter that a run would train, its mask token aside.

    Raises InputError where a size does not fit.
    """
    table, head = embedding(target), target_head(target)
    mask_token_id = config.drafter.mask_token_id
    if mask_token_id is None and config.algorithm == "peagle":
        mask_token_id = table.shape[0] - 1  # stands for the one that a run will choose
    shape = drafter_config(config.drafter, config.target, target.config, mask_token_id, table.shape[0])
    check_widths(table, head, shape)
    if head.shape[0] != table.shape[0]:
        raise InputError(f"the target's embedding has {table.shape[0]} rows and its output head {head.shape[0]}")
    return shape


def fake_drafter(config: RunConfig, shape: PEagleConfig) -> PEagleDrafter:
    """Make a drafter without memory; to be called, and used, in a FakeTensorMode."""
    # Scaled rotary embeddings may look at values; the type changes no size.
    drafter = PEagleDrafter(shape.replace(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}))
    freeze(drafter, config.drafter)
    return drafter


def num_elements(slots: int, cod: DrafterConfig) -> int:
    """Count the elements of a row whose every slot is supervised: an upper bound."""
    return int(slots * sum(max(cod.retention**d, cod.retention_min) for d in range(cod.num_depths)))


def drafter_costs(config: RunConfig, drafter: PEagleDrafter) -> dict[bool, ActivationCosts]:
    """Probe the drafter's activation costs, keyed by whether activation checkpointing is on."""
    device = drafter.fc.weight.device.type
    with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
        return {
            recompute: activation_costs(drafter, config.attention_backend, recompute) for recompute in (False, True)
        }


def fixed_bytes(config: RunConfig, size: TargetSize, drafter: PEagleDrafter, way: str, gpus: int) -> Fixed:
    """Estimate what one GPU holds throughout. way: "ddp", or "fsdp" within one machine."""
    shards = gpus if way == "fsdp" else 1
    gathered = min(size.layer, size.layers) if shards > 1 else 0
    target = size.bytes - size.layers + size.layers // shards + gathered
    return Fixed(target, state_bytes(drafter, shards), batch_bytes(config, drafter, gpus))


def state_bytes(drafter: PEagleDrafter, shards: int = 1) -> int:
    """Return the bytes of weights, gradients and moments in float32, in one process of `shards` that divide them."""
    trained = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in drafter.parameters() if not p.requires_grad)
    if shards == 1:
        return trained * BYTES_TRAINED + frozen * BYTES_FROZEN
    return trained * (BYTES_WHOLE + BYTES_PIECES // shards) + frozen * (BYTES_FROZEN + BYTES_FROZEN // shards)


def batch_bytes(config: RunConfig, drafter: PEagleDrafter, processes: int = 1) -> int:
    """Return the bytes of the target's states of one optimizer step in one process, float32.

    The rows of a step are all there before the first backward pass.
    """
    width = drafter.config.fused_size + drafter.config.target_hidden_size
    return math.ceil(config.optim.rows_per_step / processes) * config.data.row_length * width * 4


def device_memory(device: torch.device) -> int:
    """Return the total memory in bytes, not what is free: a GPU's, or this process's share of machine or container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return (memory if text == "max" else min(memory, int(text))) // local_size()
