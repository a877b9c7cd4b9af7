"""Conditional drop (COD) sampling: which (anchor, depth) pairs one training step visits (paper sec. 3.1, from PARD).

Depth 0 keeps every slot; depth d keeps about r^d of the anchors, each only if its depth d-1 was kept, so a kept
element always has its whole chain (a,1)..(a,d-1) to attend to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.elements import Elements, slots, supervised
from peagle_core.errors import InputError


def check_cod(num_depths: int, retention: float, retention_min: float) -> None:
    """Raise InputError unless K >= 1, 0 < r <= 1 and 0 <= r_min <= r."""
    if num_depths < 1:
        raise InputError(f"num_depths (K) must be at least 1, found {num_depths}")
    if not 0.0 < retention <= 1.0:
        raise InputError(f"retention r must be in (0, 1], found {retention}")
    if not 0.0 <= retention_min <= retention:
        raise InputError(f"retention_min must be in [0, r = {retention}], found {retention_min}")


def sample_elements(
    loss_mask: Tensor,
    doc_ids: Tensor,
    num_depths: int,
    retention: float,
    retention_min: float = 0.0,
    generator: torch.Generator | None = None,
) -> Elements:
    """Draw the elements of one packed stream of n tokens; depth-major, anchors ascending within a depth.

    loss_mask: bool[n], doc_ids: int64[n] (-1 = padding). Depth d >= 1 keeps floor((V - d) * max(r^d, r_min)) anchors
    (all that qualify, if fewer), V being the number of supervised slots, drawn uniformly from those kept at depth d-1
    whose label at depth d is still supervised. Hence no anchor < 0 and no chain across two documents or two turns.
    The drawing happens on the generator's device (CPU by default). Raises InputError on bad K, r or r_min.
    """
    check_cod(num_depths, retention, retention_min)
    all_slots = slots(doc_ids)
    anchors, depths = [all_slots], [torch.zeros_like(all_slots)]

    def survivors(pool: Tensor, depth: int) -> Tensor:
        return pool[supervised(Elements(pool, torch.full_like(pool, depth)), loss_mask, doc_ids)]

    pool = survivors(all_slots, 0)
    num_supervised = pool.numel()
    for depth in range(1, num_depths):
        pool = survivors(pool, depth)
        keep = int((num_supervised - depth) * max(retention**depth, retention_min))
        keep = min(keep, pool.numel())
        if keep <= 0:
            break
        draw = torch.randperm(pool.numel(), generator=generator, device=generator.device if generator else "cpu")
        pool = pool[draw[:keep].sort().values.to(pool.device)]
        anchors.append(pool)
        depths.append(torch.full_like(pool, depth))
    return Elements(torch.cat(anchors), torch.cat(depths))
