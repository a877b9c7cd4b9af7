"""Which rows the next optimizer step takes: shuffled passes over the data, a function of the seed and the position."""

from __future__ import annotations

import math

import numpy as np
import torch


class RowSampler:
    """An endless stream of row indices, each pass in an order of its own. `position` is the number of rows taken."""

    def __init__(self, num_rows: int, seed: int, position: int = 0) -> None:
        self.num_rows = num_rows
        self.seed = seed
        self.position = position

    def take(self, count: int) -> list[int]:
        """Return the next `count` indices, in [0, num_rows)."""
        rows = []
        for position in range(self.position, self.position + count):
            epoch, place = divmod(position, self.num_rows)
            rows.append(int(self._order(epoch)[place]))
        self.position += count
        return rows

    def _order(self, epoch: int) -> torch.Tensor:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._shuffled = torch.randperm(self.num_rows, generator=generator)
        return self._shuffled


def row_seeds(seed: int, position: int) -> tuple[int, int]:
    """Return the seeds of a row: one for the draw of its elements, one for the rest (dropout).

    A function of the run's seed and of where the row stands in the stream of rows: which process takes the row, what it
    took before and whether the run was resumed make no difference.
    """
    elements, rest = np.random.SeedSequence((seed, position)).generate_state(2)
    return int(elements), int(rest)


def total_steps(num_rows: int, rows_per_step: int, epochs: float, max_steps: int | None) -> int:
    """Return the optimizer steps of a run, at least 1."""
    return max_steps or max(1, math.ceil(epochs * num_rows / rows_per_step))
