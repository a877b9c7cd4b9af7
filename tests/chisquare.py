"""Pearson's chi-square test: the p-value of counts under given probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """counts, probabilities: [cells]. Cells expected less than five times are pooled into one."""
    counts, expected = counts.double(), probabilities.double() * counts.sum()
    assert counts[probabilities == 0].sum() == 0, "an impossible outcome happened"
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    cells = expected > 0
    statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    return float(torch.special.gammaincc((cells.sum().double() - 1) / 2, statistic / 2))
