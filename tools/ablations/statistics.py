"""Judge the differences of configurations: is one more than noise, and does it confirm what was expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tools.ablations.contrasts import Contrast
from tools.ablations.record import Record

# A difference counts when it exceeds this many of its standard errors.
THRESHOLD = 2.0


@dataclass(frozen=True)
class Difference:
    """Hold a contrast as measured.

    mean, reference_mean: acceptance lengths of its two rows. seed_error, prompt_error: the standard error of their
    difference from the noise of training and from the choice of prompts.
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
        """Return whether the change is within noise, also True where the noise is not known (one seed)."""
        return not abs(self.change) > THRESHOLD * self.error


def seed_noise(record: Record) -> float:
    """Return the standard deviation over seeds, pooled over all rows, for three seeds say little about one row."""
    squares = [
        (row.deviation**2 * (len(row.accept_lengths) - 1), len(row.accept_lengths) - 1)
        for row in record.rows
        if row.deviation is not None
    ]
    return math.sqrt(sum(s for s, _ in squares) / sum(n for _, n in squares)) if squares else math.nan


def differences(record: Record, contrasts: tuple[Contrast, ...]) -> list[Difference]:
    """Return the contrasts whose two configurations are in the record, as measured."""
    noise, found = seed_noise(record), []
    by_prompt = {(pair.row, pair.reference): pair.prompt_error for pair in record.pairs}
    for contrast in contrasts:
        row, reference = record.row(contrast.row), record.row(contrast.reference)
        if row and reference:
            by_seed = noise * math.sqrt(1 / len(row.accept_lengths) + 1 / len(reference.accept_lengths))
            error = by_prompt[contrast.row, contrast.reference]
            found.append(Difference(contrast, row.mean, reference.mean, by_seed, error))
    return found


def verdict(difference: Difference) -> str:
    """Say what the measurement means for the paper's finding, or for two ways that should give the same head."""
    contrast = difference.contrast
    if difference.is_noise:
        return "same within noise" if contrast.expects == "same" else "within noise"
    if contrast.expects == "same":
        return "DIFFERS"
    if not contrast.published:
        return "more" if difference.change > 0 else "less"
    same_sign = all(published.percent * difference.change > 0 for published in contrast.published)
    return "as in the paper" if same_sign else "NOT as in the paper"


def confirms(difference: Difference) -> bool:
    """Tell whether the contrast came out as its promise expects."""
    more = difference.change > 0 and not difference.is_noise
    less = difference.change < 0 and not difference.is_noise
    return {"more": more, "not more": not more, "not less": not less, "same": difference.is_noise}[
        difference.contrast.expects
    ]


def promises(found: list[Difference]) -> dict[str, bool]:
    """Return for each promise whether all its contrasts confirm it."""
    named = [d for d in found if d.contrast.promise]
    return {
        promise: all(confirms(d) for d in named if d.contrast.promise == promise)
        for promise in dict.fromkeys(d.contrast.promise for d in named)
    }
