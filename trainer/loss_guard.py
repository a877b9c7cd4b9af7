"""A run that goes wrong without a NaN: the loss climbs and stays up.

The smoothed loss is compared with the best it ever was. What counts as climbing is a share of the first losses, those
of an untrained drafter, so neither the scale of the loss (depth weights) nor the noise of a drafter that is nearly
perfect matters; and it must last, for single bad steps and spikes are part of healthy runs.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 20  # steps whose mean is the first loss: one alone may be half of it by chance
CAP = 3  # times the very first one, what a loss counts in that mean: a run may be lost at once
SMOOTHING = 0.9  # about ten steps
CLIMB = 1 / 3  # of the first loss, above the best one
PATIENCE = 200  # steps in a row


@dataclass
class LossGuard:
    """Notice a loss that has climbed for good.

    steps: losses seen; begin: the very first; first: the mean of the first START ones, capped; now: smoothed; best: the
    lowest `now`; climbing: steps in a row for which `now` has been too high.
    """

    steps: int = 0
    begin: float = 0.0
    first: float = 0.0
    now: float = 0.0
    best: float = 0.0
    climbing: int = 0

    def add(self, loss: float) -> None:
        """Take in the mean loss of one optimizer step."""
        self.steps += 1
        if self.steps <= START:
            self.begin = self.begin or loss
            self.first += (min(loss, CAP * self.begin) - self.first) / self.steps
            self.now = self.best = self.first
            return
        self.now = SMOOTHING * self.now + (1 - SMOOTHING) * loss
        self.best = min(self.best, self.now)
        self.climbing = self.climbing + 1 if self.now > self.best + CLIMB * self.first else 0

    @property
    def diverged(self) -> bool:
        return self.climbing >= PATIENCE
