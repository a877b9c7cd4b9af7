"""Measure mask loading: an example's mask built from scratch, sliced from one built once, and not needed at all.

    python -m tools.bench masks

Loading an example means drawing its elements (COD) and getting the mask a training step takes. per-example is what
PARD's collator does: the additive float mask over all n*K pairs, one comparison of the whole grid per depth, then the
rows and columns that were drawn. amortised draws the same rows and columns from the mask of the longest document.
ranges is what the torch and triton backends take instead of a mask. One thread; the building from scratch is timed on a
few examples, the others on all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peagle_core.attention.layout import make_layout
from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.mask import AmortizedMask, dense_mask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", type=lambda x: [int(i) for i in x.split(",")], default=[512, 1024, 2048])
    parser.add_argument("--depths", type=int, default=8, help="K")
    parser.add_argument("--retention", type=float, default=0.8, help="r")
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--from-scratch", type=int, default=3, help="examples of the slow way")
    parser.add_argument("--json", type=Path, help="also write the results here")


def per_example_mask(elements: Elements, length: int, num_depths: int) -> Tensor:
    """Build the additive mask of one example from scratch: float32[N, N], 0 or the lowest float.

    It is 0 where dense_mask is True.
    """
    pair = torch.arange(length * num_depths)
    anchor, depth = pair % length, pair // length
    visible = (depth == 0) & (anchor <= anchor[:, None])
    for d in range(1, num_depths):
        visible |= (anchor == anchor[:, None]) & (depth == d) & (depth[:, None] >= d)
    mask = torch.full(visible.shape, torch.finfo(torch.float32).min).masked_fill_(visible, 0.0)
    drawn = elements.depth * length + elements.anchor
    return mask[drawn][:, drawn].contiguous()


def seconds(load: Callable[[int], object], examples: int) -> list[float]:
    times = []
    for seed in range(examples):
        start = time.perf_counter()
        load(seed)
        times.append(time.perf_counter() - start)
    return times


def measure(length: int, num_depths: int, retention: float, examples: int, from_scratch: int) -> dict[str, Any]:
    """Return median seconds per example of each way, and what the amortised mask costs once."""
    loss_mask, doc_ids = torch.ones(length + 1, dtype=torch.bool), torch.zeros(length + 1, dtype=torch.int64)

    def draw(seed: int) -> Elements:
        return sample_elements(
            loss_mask, doc_ids, num_depths, retention, generator=torch.Generator().manual_seed(seed)
        ).order("anchor")

    start = time.perf_counter()
    built = AmortizedMask(length, num_depths)
    build_seconds = time.perf_counter() - start
    elements = draw(0)
    expected = dense_mask(elements, doc_ids)
    assert torch.equal(built.select(elements, doc_ids), expected)
    assert torch.equal(per_example_mask(elements, length, num_depths) == 0, expected)
    ways = {
        "per_example": seconds(lambda seed: per_example_mask(draw(seed), length, num_depths), from_scratch),
        "amortised": seconds(lambda seed: built.select(draw(seed), doc_ids), examples),
        "slice": seconds(lambda seed: built.slice(length - seed % 2), examples),
        "ranges": seconds(lambda seed: make_layout(draw(seed), doc_ids), examples),
    }
    return {
        "length": length,
        "elements": len(elements),
        "build_once_seconds": build_seconds,
        "mask_mib": built.full.numel() / 2**20,
        **{name: statistics.median(times) for name, times in ways.items()},
    }


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rows = []
    print(f"seconds per {args.examples} examples, K={args.depths}, r={args.retention}; in brackets times per-example")
    print(
        f"{'S':>6}{'N':>8}{'per-example':>13}{'amortised':>18}{'ranges':>18}{'slice':>12}{'build once':>12}{'MiB':>7}"
    )
    for length in args.lengths:
        row = measure(length, args.depths, args.retention, args.examples, args.from_scratch)
        rows.append(row)
        total = {name: row[name] * args.examples for name in ("per_example", "amortised", "ranges", "slice")}
        faster = {name: f"({total['per_example'] / total[name]:.0f}x)" for name in total}
        print(
            f"{length:6}{row['elements']:8}{total['per_example']:13.1f}"
            f"{total['amortised']:10.3f}{faster['amortised']:>8}{total['ranges']:10.3f}{faster['ranges']:>8}"
            f"{total['slice']:12.6f}{row['build_once_seconds']:12.3f}{row['mask_mib']:7.0f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
