"""Measure the step of a training configuration in every mode and backend: time, memory, gradients against float32.

    python -m tools.bench step --config trainer/configs/recipes/llama-3.1-8b.yaml target=DIR
    python -m tools.bench step --config ... target=DIR algorithm=eagle3 --lengths 4096,20480

Of target=DIR only config.json is read: weights and inputs are random, one document whose every token is supervised and
whose every label is in the draft vocabulary. A step is what the trainer runs for one row, forward, loss and backward of
the drafter under the configured loss and precision; neither optimizer nor target run. Made for GPUs; on a CPU neither
memory nor share is measured.

`share` is the step's FLOPs (estimated as `train --dry-run` does) over time, as a part of what a large matrix product
reached in the same run. `peak` is beyond weights, gradients and batch; `estimate` is what the trainer would go by.
`worst gradient`: the parameter farthest from a float32 step's, by norm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import supervised
from peagle_core.errors import InputError
from peagle_core.training import Batch
from tools.bench.kernels import measure_ceilings, relative_error
from trainer.config import RunConfig, load_config
from trainer.new_drafter import freeze
from trainer.sizing.choose import make_plan
from trainer.sizing.dry_run import step_flops
from trainer.sizing.sizes import drafter_costs, drafter_shape, meta_target
from trainer.train.loop import Work, backward

GIB = 2**30


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
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak = measure_ceilings(device, dtype).flops if device.type == "cuda" else None
    torch.manual_seed(config.seed)
    drafter = PEagleDrafter(drafter_shape(config, target)).to(device)
    freeze(drafter, config.drafter)
    chip = torch.cuda.get_device_name(device) if peak else f"CPU, {torch.get_num_threads()} threads"
    product = "" if peak is None else f"; a matrix product {peak / 1e12:.1f} TFLOP/s"
    print(f"{chip}; torch {torch.__version__}; {config.precision}{product}")
    rows = []
    for length in lengths:
        try:
            case = Case(of_length(config, length), drafter)
        except torch.OutOfMemoryError:
            raise InputError(f"S = {length}: the float32 step to compare with does not fit the memory") from None
        elements = len(case.work.elements)
        print(f"\nS = {length}, N = {elements}\n{HEADER}", flush=True)
        flops = step_flops(case.config, target.config.get_text_config(), drafter.config, 0, drafter.layers, False)[1]
        for way in ways(case.config):
            found = case.measure(way, args.rounds)
            share = flops / found["seconds"] / peak if peak and found["seconds"] else None
            rows.append({"length": length, "elements": elements, "way": name(way), **found, "share": share})
            print(line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": chip, "flops": peak, "rows": rows}, indent=2) + "\n")


def of_length(config: RunConfig, length: int) -> RunConfig:
    """Return the configuration with one row a step, of one document of that many slots."""
    size = {"row_length": length, "max_length": length}
    parts = {"data": config.data.model_copy(update=size), "optim": config.optim.model_copy(update={"rows_per_step": 1})}
    return config.model_copy(update=parts)


def ways(config: RunConfig) -> list[RunConfig]:
    """Return every mode with the backend of the device, and on a GPU what there is without Triton.

    Chunks and segments are as usual.
    """

    def way(attention: str, mode: str, recompute: bool = False) -> RunConfig:
        usual = {"chunk_rows": None, "num_segments": None, "memory_budget_gib": None}
        how = {"attention": attention, "mode": mode, "activation_checkpointing": recompute}
        return config.model_copy(update={**usual, **how})

    best = config.attention_backend
    found = [way(best, "flat"), way(best, "stream"), way(best, "flat", recompute=True)]
    if config.algorithm == "peagle":
        found.insert(2, way(best, "partition"))
    return found if best == "torch" else [*found, way("torch", "flat"), way("torch", "stream")]


def name(way: RunConfig) -> str:
    return f"{way.mode}{', recompute' if way.activation_checkpointing else ''}, {way.attention}"


class Case:
    """Hold one length: random inputs on the drafter's device, and float32 gradients to compare with."""

    def __init__(self, config: RunConfig, drafter: PEagleDrafter) -> None:
        self.config, self.drafter, self.device = config, drafter, drafter.fc.weight.device
        shape, cod = drafter.config, config.drafter
        rng, tokens = torch.Generator().manual_seed(config.seed), config.data.row_length + 1
        text, document = torch.ones(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.int64)
        elements = sample_elements(text, document, cod.num_depths, cod.retention, cod.retention_min, rng)
        elements = elements.to(self.device)
        width = shape.target_hidden_size
        batch = Batch(
            torch.randint(0, shape.vocab_size, (tokens,), generator=rng).to(self.device),
            torch.randn(tokens, 3 * width, device=self.device),
            torch.randn(tokens, width, device=self.device),
            text.to(self.device),
            document.to(self.device),
        )
        charged = supervised(elements, batch.loss_mask, batch.doc_ids)
        self.work, self.denominator = Work(batch, elements, charged, config.seed), float(charged.sum())
        self.head = torch.randn(shape.vocab_size, width, device=self.device) / width**0.5
        stream = next(way for way in ways(config) if way.mode == "stream")
        self._step(stream.model_copy(update={"precision": "fp32"}))
        self.exact = {name: p.grad.clone() for name, p in drafter.named_parameters() if p.grad is not None}

    def measure(self, way: RunConfig, rounds: int) -> dict[str, Any]:
        """Return seconds and GiB; None what did not fit the memory or cannot be measured."""
        estimate = make_plan(way, drafter_costs(way, self.drafter), 0, self.device.type).activations / GIB
        try:
            self._step(way)
            parameter, error = self._worst()
            before = self._memory(reset=True)
            seconds = statistics.median(self._step(way) for _ in range(rounds))
            peak = (self._memory() - before) / GIB if self.device.type == "cuda" else None
        except torch.OutOfMemoryError:
            return {"seconds": None, "peak": None, "estimate": estimate, "parameter": None, "error": None}
        return {"seconds": seconds, "peak": peak, "estimate": estimate, "parameter": parameter, "error": error}

    def _step(self, way: RunConfig) -> float:
        """Run one step and return its seconds. Gradients are zeroed, not freed: they are no activations."""
        self.drafter.zero_grad(set_to_none=False)
        start = self._now()
        backward(way, self.drafter, self.work, self.head, self.denominator)
        return self._now() - start

    def _worst(self) -> tuple[str, float]:
        """Return the parameter whose gradient is farthest from the float32 one, and how far."""
        errors = {}
        for name, exact in self.exact.items():
            gradient = self.drafter.get_parameter(name).grad
            assert gradient is not None
            errors[name] = relative_error(gradient, exact)
        return max(errors.items(), key=lambda found: found[1])

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _memory(self, reset: bool = False) -> int:
        """Return bytes: those allocated now when the peak is reset, else the peak since then."""
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
