"""Reduce the results of all runs to a record small enough to be committed: docs/ablations.json.

The page and its plot are written from the record alone (`tools.ablations.document`).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from peagle_core.atomic import replace_file
from tools.ablations.contrasts import Contrast
from tools.ablations.trial import Result
from tools.bench.serve.results import cpu_name


@dataclass(frozen=True)
class Row:
    """Sum up one configuration over its seeds.

    accept_lengths: one a seed. prompt_error: standard error of their mean from the choice of prompts. prompts,
    new_tokens, steps, step_tokens: of one run; cpu_seconds: of one run, a mean; draft_ms: what the drafts of one step
    take (`tools.ablations.cost`), None where that was not measured.
    """

    name: str
    accept_lengths: list[float]
    prompt_error: float
    prompts: int
    new_tokens: int
    steps: int
    step_tokens: int
    optimizer: str
    lr: float
    cpu_seconds: float
    draft_ms: float | None = None

    @property
    def mean(self) -> float:
        return fmean(self.accept_lengths)

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation over seeds; None for one seed."""
        return stdev(self.accept_lengths) if len(self.accept_lengths) > 1 else None


@dataclass(frozen=True)
class Pair:
    """Hold what two rows have in common. prompt_error: of the difference of their means, paired by prompt."""

    row: str
    reference: str
    prompt_error: float


@dataclass(frozen=True)
class Record:
    """Hold everything that the page says about a series of runs. notes: paragraphs on how it came about."""

    date: str
    machine: str
    seeds: list[int]
    num_draft_tokens: int
    rows: list[Row]
    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)


def record_of(
    results: list[Result], contrasts: tuple[Contrast, ...], draft_ms: Mapping[str, float] | None = None
) -> Record:
    """Sum up results, at least one; pairs: of the contrasts whose two configurations have results.

    draft_ms: of each configuration, what drafting takes.
    """
    cost = draft_ms or {}
    runs = {result.name: [r for r in results if r.name == result.name] for result in results}
    influence = {name: _influence(of_name) for name, of_name in runs.items()}
    pairs = [
        Pair(c.row, c.reference, _over_prompts([a - b for a, b in zip(*both, strict=True)]))
        for c in contrasts
        if c.row in runs and c.reference in runs
        for both in [(influence[c.row], influence[c.reference])]
    ]
    return Record(
        date=str(datetime.date.today()),
        machine=f"{cpu_name()}, {os.cpu_count()} cores, PyTorch {importlib.metadata.version('torch')}",
        seeds=sorted({result.seed for result in results}),
        num_draft_tokens=results[0].settings["eval"]["num_draft_tokens"][0],
        rows=[_row(name, of_name, influence[name], cost.get(name)) for name, of_name in runs.items()],
        pairs=pairs,
    )


def write_record(path: Path, record: Record) -> None:
    replace_file(path, (json.dumps(asdict(record), indent=1) + "\n").encode())


def read_record(path: Path) -> Record:
    raw = json.loads(path.read_text())
    rows, pairs = [Row(**row) for row in raw.pop("rows")], [Pair(**pair) for pair in raw.pop("pairs")]
    return Record(**raw, rows=rows, pairs=pairs)


def _row(name: str, runs: list[Result], influence: list[float], draft_ms: float | None) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    data, optim = runs[0].settings["data"], runs[0].settings["optim"]
    return Row(
        name=name,
        accept_lengths=[run.accept_length for run in runs],
        prompt_error=_over_prompts(influence),
        prompts=len(influence),
        new_tokens=runs[0].new_tokens,
        steps=runs[0].steps,
        step_tokens=data["row_length"] * optim["rows_per_step"],
        optimizer=optim["optimizer"],
        lr=optim["lr"],
        cpu_seconds=fmean(run.cpu_seconds for run in runs),
        draft_ms=draft_ms,
    )


def _influence(runs: list[Result]) -> list[float]:
    """Return the influence of each prompt on a configuration's mean over seeds.

    As the ratio estimator (tokens per step over all prompts) linearises it: the standard error over prompts is the
    root sum of squares of the influences, and that of a difference of two configurations, which draft for the same
    prompts, is that of the influences' difference.
    """
    of_runs = []
    for run in runs:
        total = sum(steps for steps, _ in run.per_prompt)
        of_runs.append([(tokens - run.accept_length * steps) / total for steps, tokens in run.per_prompt])
    return [fmean(of_prompt) for of_prompt in zip(*of_runs, strict=True)]


def _over_prompts(influence: list[float]) -> float:
    n = len(influence)
    return math.sqrt(sum(x * x for x in influence) * n / (n - 1))
