"""A run that goes wrong without a NaN: the loss climbs and stays up.

The smoothed loss is compared with the best it ever was. What counts as climbing is a share of the very first losses,
those of an untrained drafter, so neither the scale of the loss (depth weights) nor the noise of a drafter that is
nearly perfect matters; and it must last, for single bad steps and spikes are part of healthy runs.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST = 10  # steps whose mean is the first level
SMOOTHING = 0.9  # about ten steps
CLIMB = 1 / 3  # of the first level, above the best one
PATIENCE = 200  # steps in a row


@dataclass
class LossGuard:
    """seen: losses so far; first: mean of the first ones; now: smoothed; best: the lowest `now`; climbing: steps in a
    row for which `now` has been too high.
    """

    seen: int = 0
    first: float = 0.0
    now: float = 0.0
    best: float = float("inf")
    climbing: int = 0

    def add(self, loss: float) -> None:
        """The mean loss of one optimizer step."""
        self.seen += 1
        if self.seen <= FIRST:
            self.first += (loss - self.first) / self.seen
            self.now = self.first
        else:
            self.now = SMOOTHING * self.now + (1 - SMOOTHING) * loss
            self.best = min(self.best, self.now)
        self.climbing = self.climbing + 1 if self.now > self.best + CLIMB * self.first else 0

    @property
    def diverged(self) -> bool:
        return self.climbing >= PATIENCE
