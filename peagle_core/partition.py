"""Partitioning inside a sequence: which segment of it charges which element (paper sec. 3.2, Algorithm 1).

A chain never straddles two segments, so a segment needs nothing but its own elements and the depth-0 rows before its
end, and the gradients of the segments add up to those of the whole. Boundaries are integers, chosen once:
B_s = ceil(s * L / S), which makes the printed algorithm and the closed form equal for every L and S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.elements import Elements
from peagle_core.errors import InputError


def segment_bounds(length: int, num_segments: int) -> Tensor:
    """Return int64[S+1]: B_s = ceil(s * length / S). Raises InputError unless S >= 1."""
    if num_segments < 1:
        raise InputError(f"num_segments must be at least 1, found {num_segments}")
    return -(-torch.arange(num_segments + 1) * length).div(num_segments, rounding_mode="floor")


def balanced_bounds(elements: Elements, length: int, num_segments: int) -> Tensor:
    """Return boundaries int64[S+1] that give every segment about the same number of elements.

    B_s is the first position at which at least s/S of the elements come before it. Raises InputError unless S >= 1.
    """
    if num_segments < 1:
        raise InputError(f"num_segments must be at least 1, found {num_segments}")
    before = torch.bincount(_bucket(elements).cpu(), minlength=length).cumsum(0)
    wanted = segment_bounds(len(elements), num_segments)
    bounds = torch.searchsorted(before, wanted) + 1
    bounds[0], bounds[-1] = 0, length
    return bounds.clamp(max=length)


def _bucket(elements: Elements) -> Tensor:
    """Return the position that decides, int64[N]: a at depth 0, else a + 1, where the chain's depth-1 element is."""
    return elements.anchor + (elements.depth > 0).long()


def assign_segments(elements: Elements, length: int, num_segments: int, balanced: bool = False) -> Tensor:
    """Return the segment (0..S-1) that charges each element, int64[N], in closed form.

    length: number of positions L of the (packed) row; ValueError where an element's bucket - a at depth 0, else a + 1 -
    lies beyond it. Evenly cut, the segment is floor(bucket * S / L); `balanced` cuts by element count instead. Any
    order of elements.
    """
    if len(elements) and int(_bucket(elements).max()) >= length:
        raise ValueError(f"an element belongs to position {int(_bucket(elements).max())}, beyond length {length}")
    if not balanced:
        segment_bounds(length, num_segments)  # refuses a bad S
        return _bucket(elements) * num_segments // max(length, 1)
    bounds = balanced_bounds(elements, length, num_segments).to(elements.anchor.device)
    return torch.searchsorted(bounds[1:-1].contiguous(), _bucket(elements), right=True)
