"""The step of a training configuration in every mode and backend: time, memory, and its gradients against float32.

    python -m tools.bench step --config trainer/configs/recipes/llama-3.1-8b.yaml target=DIR
    python -m tools.bench step --config ... target=DIR algorithm=eagle3 --lengths 4096,20480

Of target=DIR only config.json is read: weights and inputs are random, one document whose every token is supervised and
whose every label is in the draft vocabulary. A step is forward, loss and backward of the drafter under the configured
precision; neither optimizer nor target run. Made for GPUs; on a CPU neither memory nor share is measured.

`share` is the step's FLOPs (estimated as `train --dry-run` does) over time, as a part of what a large matrix product
reached in the same run. `peak` is beyond weights, gradients and batch; `estimate` is what the trainer would go by.
`worst gradient`: the parameter farthest from a float32 step's, by norm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements, supervised
from peagle_core.errors import InputError
from peagle_core.training import NUM_SEGMENTS, Batch, activation_costs, default_chunk_rows, step_of
from tools.bench.kernels import measure_ceilings
from trainer.config import RunConfig
from trainer.dry_run import drafter_shape, meta_target, step_flops
from trainer.load_config import load_config

GIB = 2**30


@dataclass(frozen=True)
class Way:
    """How a step runs."""

    attention: str
    mode: str
    recompute: bool = False

    def __str__(self) -> str:
        return f"{self.mode}{', recompute' if self.recompute else ''}, {self.attention}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML of a training run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in `python -m trainer`")
    parser.add_argument("--lengths", help="S, comma separated (default: data.row_length)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps after one that warms up; medians")
    parser.add_argument("--json", type=Path, help="also write the results here")


def run(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.overrides, needs_data=False)
    if args.rounds < 1:
        raise InputError(f"--rounds must be at least 1, found {args.rounds}")
    try:
        lengths = [int(text) for text in args.lengths.split(",")] if args.lengths else [config.data.row_length]
    except ValueError:
        raise InputError(f"--lengths: numbers, comma separated, expected; found {args.lengths!r}") from None
    if min(lengths) < 4:
        raise InputError(f"--lengths: at least 4, found {min(lengths)}")
    target, device = meta_target(config), torch.device(config.device)
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)  # as in the trainer
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak = measure_ceilings(device, dtype).flops if device.type == "cuda" else None
    torch.manual_seed(config.seed)
    drafter = PEagleDrafter(drafter_shape(config, target)).to(device)
    drafter.embed_tokens.requires_grad_(config.drafter.train_embedding)
    drafter.lm_head.requires_grad_(config.drafter.train_lm_head)
    product = "" if peak is None else f"; a matrix product {peak / 1e12:.1f} TFLOP/s"
    print(f"{machine(device)}; torch {torch.__version__}; {config.precision}{product}")
    rows = []
    for length in lengths:
        try:
            case = Case(config, drafter, length)
        except torch.OutOfMemoryError:
            raise InputError(f"S = {length}: the float32 step to compare with does not fit the memory") from None
        print(f"\nS = {length}, N = {len(case.elements)}\n{HEADER}", flush=True)
        flops = step_flops(case.config, target.config.get_text_config(), drafter.config, 0, drafter.layers, False)[1]
        for way in ways(config):
            row = {"length": length, "elements": len(case.elements), "way": str(way), **case.measure(way, args.rounds)}
            row["share"] = flops / row["seconds"] / peak if peak and row["seconds"] else None
            rows.append(row)
            print(line(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(device), "flops": peak, "rows": rows}, indent=2) + "\n")


def ways(config: RunConfig) -> list[Way]:
    """Every mode with the backend of the device, and on a GPU what there is without Triton."""
    best = config.attention_backend
    found = [Way(best, "flat"), Way(best, "stream"), Way(best, "flat", recompute=True)]
    if config.algorithm == "peagle":
        found.insert(2, Way(best, "partition"))
    return found if best == "sdpa" else [*found, Way("sdpa", "flat"), Way("sdpa", "stream")]


class Case:
    """One length: random inputs on the drafter's device, and float32 gradients to compare with."""

    def __init__(self, config: RunConfig, drafter: PEagleDrafter, length: int) -> None:
        size = {"row_length": length, "max_length": length}
        one_row = config.optim.model_copy(update={"rows_per_step": 1})
        self.config = config.model_copy(update={"data": config.data.model_copy(update=size), "optim": one_row})
        self.drafter, shape, cod = drafter, drafter.config, config.drafter
        self.device = drafter.fc.weight.device
        rng, tokens = torch.Generator().manual_seed(config.seed), length + 1
        text, document = torch.ones(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.int64)
        elements = sample_elements(text, document, cod.num_depths, cod.retention, cod.retention_min, rng)
        self.elements: Elements = elements.to(self.device)
        width = shape.target_hidden_size
        self.batch = Batch(
            torch.randint(0, shape.vocab_size, (tokens,), generator=rng).to(self.device),
            torch.randn(tokens, 3 * width, device=self.device),
            torch.randn(tokens, width, device=self.device),
            text.to(self.device),
            document.to(self.device),
        )
        self.charged = supervised(self.elements, self.batch.loss_mask, self.batch.doc_ids)
        self.head = torch.randn(shape.vocab_size, width, device=self.device) / width**0.5
        self._step(Way(config.attention_backend, "stream"), "fp32")
        self.exact = {name: p.grad.clone() for name, p in drafter.named_parameters() if p.grad is not None}

    def measure(self, way: Way, rounds: int) -> dict[str, Any]:
        """Seconds and GiB; None what did not fit the memory or cannot be measured."""
        estimate = self._estimate(way) / GIB
        try:
            self._step(way, self.config.precision)
            name, error = self._worst()
            held = self._memory(reset=True)
            seconds = statistics.median(self._step(way, self.config.precision) for _ in range(rounds))
            peak = (self._memory() - held) / GIB if self.device.type == "cuda" else None
        except torch.OutOfMemoryError:
            return {"seconds": None, "peak": None, "estimate": estimate, "parameter": None, "error": None}
        return {"seconds": seconds, "peak": peak, "estimate": estimate, "parameter": name, "error": error}

    def _step(self, way: Way, precision: str) -> float:
        """Seconds. Gradients are zeroed, not freed: they are no activations."""
        self.drafter.zero_grad(set_to_none=False)
        segments = {"num_segments": NUM_SEGMENTS} if way.mode == "partition" else {}
        start = self._now()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            step_of(self.drafter)(
                self.drafter, self.batch, self.elements, way.mode, target_head=self.head, charged=self.charged,
                attention=way.attention, recompute=way.recompute, **segments,
            )  # fmt: skip
        return self._now() - start

    def _estimate(self, way: Way) -> int:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            costs = activation_costs(self.drafter, way.attention, way.recompute)
        slots, elements = self.config.data.row_length, len(self.elements)
        if way.mode == "stream":
            return costs.stream(slots, default_chunk_rows(self.device.type))
        return costs.flat(slots + (elements - slots) // NUM_SEGMENTS if way.mode == "partition" else elements)

    def _worst(self) -> tuple[str, float]:
        def error(name: str) -> float:
            gradient = self.drafter.get_parameter(name).grad
            assert gradient is not None
            return float((gradient - self.exact[name]).norm() / self.exact[name].norm().clamp(min=1e-30))

        return max(((name, error(name)) for name in self.exact), key=lambda found: found[1])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _memory(self, reset: bool = False) -> int:
        """Bytes: what is held now when the peak is reset, else the peak since."""
        if self.device.type != "cuda":
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        return torch.cuda.max_memory_allocated(self.device)


HEADER = f"{'':28}{'seconds':>9}{'share':>7}{'peak GiB':>10}{'estimate':>10}  worst gradient"


def line(row: dict[str, Any]) -> str:
    start = f"{row['way']:28}"
    if row["seconds"] is None:
        return f"{start}{'out of memory':>26}{row['estimate']:10.2f}"
    share = "-" if row["share"] is None else f"{row['share']:.0%}"
    peak = "-" if row["peak"] is None else f"{row['peak']:.2f}"
    return (
        f"{start}{row['seconds']:9.3f}{share:>7}{peak:>10}{row['estimate']:10.2f}  "
        f"{row['error']:.1e} {row['parameter']}"
    )


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
