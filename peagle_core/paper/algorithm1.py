"""Algorithm 1 of the paper (sec. 3.2) as it is printed, phase by phase, to compare `peagle_core.partition` with."""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.elements import Elements


def assign_by_phases(elements: Elements, bounds: Tensor) -> Tensor:
    """Assign every element its segment, int64[N], by phases 1 and 2: the reference for `assign_segments`.

    Depths 0 and 1 go by index, a deeper element to the segment of its parent, position p-1 at depth d-1. bounds:
    int64[S+1]. Raises KeyError where a parent is missing.
    """
    num_segments = len(bounds) - 1
    segment: dict[tuple[int, int], int] = {}  # by (depth, position)
    rows = sorted(zip(elements.depth.tolist(), elements.position.tolist(), strict=True))
    for depth, position in rows:
        if depth <= 1:
            segment[depth, position] = max(s for s in range(num_segments) if bounds[s] <= position)
        else:
            segment[depth, position] = segment[depth - 1, position - 1]
    table = zip(elements.depth.tolist(), elements.position.tolist(), strict=True)
    return torch.tensor([segment[row] for row in table], dtype=torch.int64)


def visible_context(positions: Tensor, bounds: Tensor) -> list[Tensor]:
    """List for every segment s the depth-0 positions before B_{s+1}: phase 3. positions: int64[C]."""
    return [positions[positions < end] for end in bounds[1:]]
