"""Measure the training step: seconds and peak memory of our modes and of speculators' P-EAGLE core, side by side.

    python -m tools.bench train                       # all sizes, then our scaling; long
    python -m tools.bench train --lengths 2048 --hidden 64 --scaling

Every contender is a process of its own with one thread. They take turns, one step each, so that whatever else the
machine does hits all of them alike; the first round warms up, then medians. Memory is the process's peak beyond what it
had after its imports. Same shapes for all: 4 layers, K = 8, r = 0.7, r_min = 0.2, MLP 3H, lm_head frozen, float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError
from tools.judges import speculators

SHAPES = {64: {"head_dim": 16, "vocab": 512}, 256: {"head_dim": 64, "vocab": 4096}}
OURS: dict[str, dict[str, Any]] = {
    "flat": {"mode": "flat"},
    "partition": {"mode": "partition", "num_segments": 4},
    "stream": {"mode": "stream"},
    "dense": {"mode": "flat", "attention": "dense"},
}
PEER = "peer"
# The paper's sampling, for the growth with S and the longest row.
SCALING = {"num_depths": 8, "retention": 0.8, "retention_min": 0.0}
PEER_SAMPLING = {"num_depths": 8, "retention": 0.7, "retention_min": 0.2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> list[int]:
        return [int(x) for x in text.split(",") if x]

    parser.add_argument("--lengths", type=numbers, default=[512, 1024, 2048, 4096], help="S, comma separated")
    parser.add_argument("--hidden", type=numbers, default=[64, 256], help="H: 64 and 256 have shapes")
    parser.add_argument("--contenders", default="flat,partition,stream", help=f"of {', '.join(OURS)}")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after the one that warms up")
    parser.add_argument("--no-peer", action="store_true", help=f"leave {speculators.NAME} out")
    parser.add_argument(
        "--scaling", type=numbers, nargs="?", const=[], default=[2048, 4096, 8192, 20480],
        help="S of our own scaling in mode stream (H = 256, r = 0.8); without a value none",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write the results here")


class Worker:
    """Talk to one contender's process."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name = name
        if name == PEER:
            command = [str(speculators.python()), str(speculators.STEP_WORKER)]
        else:
            command = [sys.executable, "-m", "tools.bench.train_worker"]
        self.process = subprocess.Popen(
            [*command, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.baseline = self._read()["baseline_mib"]
        self.steps: list[dict[str, Any]] = []

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"the process of contender {self.name!r} ended with exit code {self.process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    def step(self, seed: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        self.steps.append(self._read())

    def result(self) -> dict[str, Any]:
        """Return median seconds after the first step and the peak beyond the imports; end the process."""
        self.process.communicate()
        measured = self.steps[1:] or self.steps
        return {
            "contender": self.name,
            "seconds": statistics.median(step["seconds"] for step in measured),
            "fastest": min(step["seconds"] for step in measured),
            "peak_mib": self.steps[-1]["peak_mib"] - self.baseline,
            "process_mib": self.steps[-1]["peak_mib"],
            "elements": self.steps[-1]["elements"],
        }


def race(names: list[str], length: int, hidden: int, rounds: int, sampling: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure all contenders at one size, taking turns."""
    options = {"length": length, "hidden": hidden, **SHAPES[hidden], **sampling}
    workers: list[Worker] = []
    try:
        workers += [Worker(name, options | {"step": OURS.get(name, {})}) for name in names]
        for seed in range(rounds + 1):
            for worker in workers:
                worker.step(seed)
        return [{"length": length, "hidden": hidden, **worker.result()} for worker in workers]
    finally:
        for worker in workers:
            worker.process.kill()


def run(args: argparse.Namespace) -> None:
    unknown = [name for name in args.contenders.split(",") if name not in OURS]
    if unknown:
        raise InputError(f"unknown contender {unknown[0]!r}; choose from {', '.join(OURS)}")
    if not set(args.hidden) <= set(SHAPES):
        raise InputError(f"--hidden: choose from {', '.join(map(str, SHAPES))}, found {args.hidden}")
    names = args.contenders.split(",") + ([] if args.no_peer else [PEER])
    results = []
    for hidden in args.hidden:
        for length in args.lengths:
            rows = race(names, length, hidden, args.rounds, PEER_SAMPLING)
            results += rows
            print(f"\nS={length} H={hidden} K=8, N={rows[0]['elements']}")
            print(compare(rows), flush=True)
    scaling = []
    for length in args.scaling:
        scaling += race(["stream"], length, 256, 1, SCALING)
        print(f"\nscaling, mode stream, H=256, r=0.8\n{growth(scaling)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"race": results, "scaling": scaling}, indent=2) + "\n")


def compare(rows: list[dict[str, Any]]) -> str:
    """Return a table of one size, with speculators' figures over ours where it ran."""
    reference = next((row for row in rows if row["contender"] == PEER), None)
    lines = [f"{'':12}{'median s':>10}{'fastest s':>11}{'peak MiB':>10}{'faster':>9}{'memory':>9}"]
    for row in rows:
        line = f"{row['contender']:12}{row['seconds']:10.3f}{row['fastest']:11.3f}{row['peak_mib']:10.0f}"
        if reference:
            line += f"{reference['seconds'] / row['seconds']:8.1f}x{row['peak_mib'] / reference['peak_mib']:9.2f}"
        lines.append(line)
    return "\n".join(lines)


def growth(rows: list[dict[str, Any]]) -> str:
    """Return a table of seconds against N * S.

    That is the number of attention scores, the only part that grows faster than N.
    """
    lines = [f"{'S':>7}{'N':>8}{'seconds':>9}{'us per row':>12}{'ns per N*S':>12}{'peak MiB':>10}{'process MiB':>13}"]
    for row in rows:
        n, s, seconds = row["elements"], row["length"], row["seconds"]
        per_row, per_score = seconds / n * 1e6, seconds / (n * s) * 1e9
        memory = f"{row['peak_mib']:10.0f}{row['process_mib']:13.0f}"
        lines.append(f"{s:7}{n:8}{seconds:9.2f}{per_row:12.1f}{per_score:12.2f}{memory}")
    return "\n".join(lines)
