"""From single runs to rows (mean and deviation over seeds) and to verdicts (is a difference more than noise)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from tools.ablations.contrasts import Contrast
from tools.ablations.trial import Result

# A difference counts when it exceeds this many of its standard errors.
THRESHOLD = 2.0


@dataclass(frozen=True)
class Row:
    """One configuration over its seeds. deviation: standard deviation over seeds, None for one seed; new_tokens,
    cpu_seconds: of one run, the latter a mean.

    influence: of each prompt on the mean over seeds, as the ratio estimator linearises it (tokens per step over all
    prompts): the standard error over prompts is its root sum of squares, and that of a difference of two rows, which
    draft for the same prompts, is that of the influences' difference.
    """

    name: str
    accept_lengths: list[float]
    deviation: float | None
    influence: list[float]
    new_tokens: int
    steps: int
    cpu_seconds: float

    @property
    def mean(self) -> float:
        return fmean(self.accept_lengths)

    @property
    def prompt_error(self) -> float:
        return _over_prompts(self.influence)


@dataclass(frozen=True)
class Difference:
    """A contrast as measured. mean, reference_mean: acceptance lengths of its two rows; seed_error, prompt_error: the
    standard error of their difference from the noise of training and from the choice of prompts.
    """

    contrast: Contrast
    mean: float
    reference_mean: float
    seed_error: float
    prompt_error: float

    @property
    def change(self) -> float:
        return self.mean - self.reference_mean

    @property
    def percent(self) -> float:
        return 100 * self.change / self.reference_mean

    @property
    def error(self) -> float:
        return math.hypot(self.seed_error, self.prompt_error)

    @property
    def is_noise(self) -> bool:
        """True also where the noise is not known (one seed)."""
        return not abs(self.change) > THRESHOLD * self.error


def rows_of(results: list[Result]) -> dict[str, Row]:
    rows = {}
    for name in dict.fromkeys(result.name for result in results):
        runs = sorted((r for r in results if r.name == name), key=lambda r: r.seed)
        lengths = [run.accept_length for run in runs]
        rows[name] = Row(
            name=name,
            accept_lengths=lengths,
            deviation=stdev(lengths) if len(lengths) > 1 else None,
            influence=[fmean(of_runs) for of_runs in zip(*map(_influence, runs), strict=True)],
            new_tokens=runs[0].new_tokens,
            steps=runs[0].steps,
            cpu_seconds=fmean(run.cpu_seconds for run in runs),
        )
    return rows


def _influence(run: Result) -> list[float]:
    total = sum(steps for steps, _ in run.per_prompt)
    return [(tokens - run.accept_length * steps) / total for steps, tokens in run.per_prompt]


def _over_prompts(influence: list[float]) -> float:
    n = len(influence)
    return math.sqrt(sum(x * x for x in influence) * n / (n - 1))


def seed_noise(rows: dict[str, Row]) -> float:
    """Standard deviation over seeds, pooled over all rows: three seeds alone say little about a row's own."""
    squares = [
        (row.deviation**2 * (len(row.accept_lengths) - 1), len(row.accept_lengths) - 1)
        for row in rows.values()
        if row.deviation is not None
    ]
    return math.sqrt(sum(s for s, _ in squares) / sum(n for _, n in squares)) if squares else math.nan


def differences(contrasts: tuple[Contrast, ...], rows: dict[str, Row]) -> list[Difference]:
    """Of the contrasts whose two rows are there."""
    noise, found = seed_noise(rows), []
    for contrast in contrasts:
        if contrast.row in rows and contrast.reference in rows:
            row, reference = rows[contrast.row], rows[contrast.reference]
            by_seed = noise * math.sqrt(1 / len(row.accept_lengths) + 1 / len(reference.accept_lengths))
            by_prompt = _over_prompts([a - b for a, b in zip(row.influence, reference.influence, strict=True)])
            found.append(Difference(contrast, row.mean, reference.mean, by_seed, by_prompt))
    return found


def verdict(difference: Difference) -> str:
    """What the measurement says about the paper's finding, or about two ways that should give the same head."""
    contrast = difference.contrast
    if difference.is_noise:
        return "same within noise" if contrast.expects == "same" else "within noise"
    if contrast.expects == "same":
        return "DIFFERS"
    if not contrast.published:
        return "more" if difference.change > 0 else "less"
    same_sign = all(published.percent * difference.change > 0 for published in contrast.published)
    return "as in the paper" if same_sign else "NOT as in the paper"


def bears_out(difference: Difference) -> bool:
    """Whether the contrast came out as its promise expects."""
    more = difference.change > 0 and not difference.is_noise
    less = difference.change < 0 and not difference.is_noise
    return {"more": more, "not more": not more, "not less": not less, "same": difference.is_noise}[
        difference.contrast.expects
    ]


def promises(found: list[Difference]) -> dict[str, bool]:
    """Promise -> whether all its contrasts bear it out."""
    named = [d for d in found if d.contrast.promise]
    return {
        promise: all(bears_out(d) for d in named if d.contrast.promise == promise)
        for promise in dict.fromkeys(d.contrast.promise for d in named)
    }
