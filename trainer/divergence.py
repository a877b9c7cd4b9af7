"""A run that goes wrong without a NaN: the loss climbs and stays up.

The smoothed loss is compared with the best it ever was. What counts as climbing is a share of the very first loss, that
of an untrained drafter, so neither the scale of the loss (depth weights) nor the noise of a drafter that is nearly
perfect matters; and it must last, for single bad steps and spikes are part of healthy runs.
"""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.9  # about ten steps
CLIMB = 1 / 3  # of the first loss, above the best one
PATIENCE = 200  # steps in a row


@dataclass
class LossGuard:
    """first: the first loss; now: smoothed; best: the lowest `now`; climbing: steps in a row for which `now` has been
    too high. All 0 before the first loss.
    """

    first: float = 0.0
    now: float = 0.0
    best: float = 0.0
    climbing: int = 0

    def add(self, loss: float) -> None:
        """The mean loss of one optimizer step."""
        if not self.first:
            self.first = self.now = self.best = loss
        self.now = SMOOTHING * self.now + (1 - SMOOTHING) * loss
        self.best = min(self.best, self.now)
        self.climbing = self.climbing + 1 if self.now > self.best + CLIMB * self.first else 0

    @property
    def diverged(self) -> bool:
        return self.climbing >= PATIENCE
