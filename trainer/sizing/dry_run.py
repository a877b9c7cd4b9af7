"""`train --dry-run`: build target and drafter without weights, check every size, estimate memory and time per GPU.

Needs the target's config only: no weights, no tokenizer, no data. Every number about memory and time is an estimate
from shapes; nothing is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from trainer.config import RunConfig
from trainer.sizing.choose import GPU_SHARE, make_plan
from trainer.sizing.sizes import (
    GIB,
    TargetSize,
    drafter_costs,
    drafter_shape,
    fake_drafter,
    fixed_bytes,
    meta_target,
    num_elements,
    target_size,
)
from trainer.warm_start import adopt_head

WAYS = ("ddp", "fsdp")
# Share of the peak that a step is taken to reach.
UTILISATION = 0.35


@dataclass(frozen=True)
class Gpu:
    """memory: GiB; bf16, fp32: dense peak in TFLOPS without sparsity, from the vendor's data sheets."""

    name: str
    memory: int
    bf16: float
    fp32: float


GPUS = (
    Gpu("RTX 4090", 24, 165, 82.6),
    Gpu("A100 80GB", 80, 312, 19.5),
    Gpu("H100 SXM", 80, 989, 67),
    Gpu("H200", 141, 989, 67),
    Gpu("B200", 180, 2250, 75),
)


def dry_run(config: RunConfig, gpus: int = 1) -> None:
    """Print the report, for a run on that many GPUs of one machine.

    Raises InputError, one sentence, where a size does not fit or no config can be had.
    """
    config = adopt_head(config)
    target = meta_target(config)
    shape, size = drafter_shape(config, target), target_size(config, target)
    with FakeTensorMode():
        report(config, target, shape, size, fake_drafter(config, shape), gpus)


def step_flops(
    config: RunConfig, text: Any, shape: PEagleConfig, active: float, layers: nn.ModuleList, recompute: bool
) -> tuple[float, float]:
    """Return (target, drafter) FLOPs of one optimizer step.

    Every token is supervised, documents have max_length.
    """
    slots, rows = config.data.row_length, config.optim.rows_per_step
    elements = num_elements(slots, config.drafter)
    context = config.data.max_length / 2  # of a causal row, on average
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    attention = 4 * text.num_hidden_layers * text.num_attention_heads * head_dim * context
    target = slots * (2 * active + attention)
    per_element = 2.0 * sum(p.numel() for p in layers.parameters())
    per_element += 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * context
    fusing = 2 * slots * shape.fused_size * shape.hidden_size
    heads = 2 * shape.draft_vocab_size * (3 * elements * shape.hidden_size + slots * shape.target_hidden_size)
    passes = 4 if recompute else 3  # forward, twice as much backward, and forward again
    return rows * target, rows * (passes * elements * per_element + 3 * fusing + heads)


def report(
    config: RunConfig,
    target: PreTrainedModel,
    shape: PEagleConfig,
    size: TargetSize,
    drafter: PEagleDrafter,
    gpus: int,
) -> None:
    text, slots = target.config.get_text_config(), config.data.row_length
    trained = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    elements, tokens = num_elements(slots, config.drafter), config.optim.rows_per_step * slots
    mask = "chosen at run time" if config.drafter.mask_token_id is None else str(shape.mask_token_id)
    mask = "none (EAGLE-3)" if shape.autoregressive else mask
    print(
        f"target   {config.target}: {type(target).__name__}, {text.num_hidden_layers} layers, hidden "
        f"{text.hidden_size}, {size.parameters / 1e9:.2f}B parameters, {size.bytes / GIB:.1f} GiB in {size.dtype}"
    )
    if getattr(target.config, "quantization_config", None):
        print("         stored quantised; counted as above, for transformers unpacks it where its kernels are missing")
    print(
        f"drafter  {shape.num_hidden_layers} layers, K = {shape.num_depths}, heads {shape.num_attention_heads}/"
        f"{shape.num_key_value_heads} x {shape.head_dim}, MLP {shape.intermediate_size}, vocabulary "
        f"{shape.draft_vocab_size} of {shape.vocab_size}, aux layers {list(shape.aux_layer_ids or ())}, "
        f"mask token {mask}"
    )
    print(
        f"step     {config.optim.rows_per_step} rows of {slots} tokens, at most {elements} elements a row, "
        f"{config.precision}, attention as on a GPU"
    )
    costs = drafter_costs(config, drafter)
    print(f"time     FLOPs / ({UTILISATION:.0%} of the peak): an estimate, nothing is measured")
    for way in WAYS if gpus > 1 else WAYS[:1]:
        fixed = fixed_bytes(config, size, drafter, way, gpus)
        if gpus > 1:
            print(f"\nparallel: {way} on {gpus} GPUs; memory is one GPU's, communication is not counted")
        print(f"memory   {fixed.words(trained)}; then activations (estimates)")
        print(f"{'GPU':<10} {'GiB':>4} {'needs':>6} {'mode':<26} {'s/step':>8} {'tokens/s':>9}")
        for gpu in GPUS:
            budget = int(GPU_SHARE * gpu.memory * GIB) - fixed.total
            try:
                plan = make_plan(config, costs, budget, "cuda")
            except InputError:
                need = (fixed.total + costs[True].stream(slots, 64)) / GIB
                print(f"{gpu.name:<10} {gpu.memory:>4} {need:>6.0f} does not fit")
                continue
            needs = fixed.total + max(size.states, plan.activations)
            of_target, of_drafter = step_flops(config, text, shape, size.active, drafter.layers, plan.recompute)
            target_peak = gpu.fp32 if size.dtype == "float32" else gpu.bf16
            drafter_peak = gpu.bf16 if config.precision == "bf16" else gpu.fp32
            seconds = (of_target / target_peak + of_drafter / drafter_peak) / (UTILISATION * 1e12)
            seconds *= math.ceil(config.optim.rows_per_step / gpus) / config.optim.rows_per_step  # the busiest GPU's
            mode = plan.mode + (f", chunks of {plan.chunk_rows}" if plan.chunk_rows else "")
            mode += ", recompute" if plan.recompute else ""
            too_much = "  does not fit" if needs > GPU_SHARE * gpu.memory * GIB else ""
            print(f"{gpu.name:<10} {gpu.memory:>4} {needs / GIB:>6.0f} {mode:<26} {seconds:>8.2f} "
                  f"{tokens / seconds:>9.0f}{too_much}")  # fmt: skip
    if config.optim.max_steps:
        print(f"run      {config.optim.max_steps} steps, {config.optim.max_steps * tokens / 1e6:.3g}M tokens")
