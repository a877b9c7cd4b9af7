"""What a benchmark found: everything that the report, the table and the pictures need."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tools.bench.serve.contenders import label
from tools.bench.serve.metrics import Row
from tools.bench.serve.samples import Sample
from tools.bench.serve.simulated.paper import beside_the_paper, text_lines

PACKAGES = ("peagle", "sglang", "torch", "transformers")


@dataclass(frozen=True)
class Results:
    """Everything that the report needs; plain values alone, so that JSON keeps it whole.

    simulated: the acceptance lengths that were made up, in words; size: the name of a model without weights.
    """

    workload: str
    simulated: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    servers: list[dict[str, Any]]
    rows: list[Row]
    samples: list[Sample]
    size: str | None = None

    @property
    def labels(self) -> list[str]:
        """Return the names of what was compared: no speculation, then each algorithm with its K rising."""
        found = {(row.k > 0, row.algorithm, row.k) for row in self.rows}
        return [label(algorithm, k) for _, algorithm, k in sorted(found)]

    @property
    def by_load(self) -> dict[tuple[str, int], list[Row]]:
        """Return the rows of every (data set, concurrency), of all rounds."""
        found: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.dataset, row.concurrency), []).append(row)
        return found

    @property
    def beside_the_paper(self) -> list[str]:
        """Return the ratios of a model without weights as the paper counts them, a sentence each."""
        return text_lines(beside_the_paper(self.rows, self.size)) if self.size else []

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "best": best(self.rows), "beside_the_paper": self.beside_the_paper}


def best(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Find for every data set and concurrency the K at which each algorithm is fastest over no speculation.

    Where no speculation was not measured, by tokens per second.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        if row.k == 0:
            continue
        entry = found.setdefault(
            (row.dataset, row.concurrency), {"dataset": row.dataset, "concurrency": row.concurrency}
        )
        rival = entry.get(row.algorithm)
        value = row.speed_up or row.tok_per_s
        if rival is None or value > (rival["speed_up"] or rival["tok_per_s"]):
            entry[row.algorithm] = {
                "k": row.k, "speed_up": row.speed_up, "tok_per_s": row.tok_per_s, "accept_length": row.accept_length,
            }  # fmt: skip
    for entry in found.values():
        if "PEAGLE" in entry and "EAGLE3" in entry:
            ours, theirs = entry["PEAGLE"], entry["EAGLE3"]
            measure = "speed_up" if ours["speed_up"] and theirs["speed_up"] else "tok_per_s"
            entry["ratio"] = ours[measure] / theirs[measure]
    return list(found.values())


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.platform()}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}


def cpu_name() -> str:
    """Return the processor's model name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
