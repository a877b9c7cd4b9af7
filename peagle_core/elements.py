"""Elements: the rows of a P-EAGLE training pass, each a pair (anchor a, depth d), and which of them are charged.

A document x_0..x_{n-1} has slots 0..n-2: slot i holds input token x_{i+1} and target state g_i, has RoPE position i
and predicts x_{i+2} (the EAGLE-3 shift). Element (a, d) is drafted at position a + d, d rows after its anchor, and
predicts x_{a+d+2}. Everything else about an element follows from the pair (docs/elements.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING_DOC = -1


@dataclass(frozen=True)
class Elements:
    """anchor: int64[N], depth: int64[N]; positions index the packed token stream."""

    anchor: Tensor
    depth: Tensor

    def __post_init__(self) -> None:
        if self.anchor.shape != self.depth.shape or self.anchor.dim() != 1:
            raise ValueError(f"anchor and depth must be equal 1-D, got {self.anchor.shape} and {self.depth.shape}")

    @property
    def position(self) -> Tensor:
        """Return int64[N]: a + d, the slot whose label the element predicts."""
        return self.anchor + self.depth

    def __len__(self) -> int:
        return self.anchor.numel()

    def __getitem__(self, rows: Tensor | slice) -> Elements:
        return Elements(self.anchor[rows], self.depth[rows])

    def argsort(self, by: str) -> Tensor:
        """Return the row order, int64[N], by "anchor" (then depth: each chain is contiguous) or by "depth"."""
        if by not in ("anchor", "depth"):
            raise ValueError(f"order must be 'anchor' or 'depth', not {by!r}")
        major, minor = (self.anchor, self.depth) if by == "anchor" else (self.depth, self.anchor)
        rows = torch.argsort(minor, stable=True)
        return rows[torch.argsort(major[rows], stable=True)]

    def order(self, by: str) -> Elements:
        """Sort by "anchor" (what attention wants) or by "depth" (the paper's layout); see `argsort`."""
        return self[self.argsort(by)]

    def to(self, device: torch.device | str) -> Elements:
        return Elements(self.anchor.to(device), self.depth.to(device))


def slots(doc_ids: Tensor) -> Tensor:
    """Return the slots of a packed stream, int64[S]: every i whose tokens i and i+1 share a document.

    doc_ids: int64[n], -1 = padding.
    """
    exists = (doc_ids[:-1] == doc_ids[1:]) & (doc_ids[:-1] != PADDING_DOC)
    return exists.nonzero().squeeze(-1)


def run_ends(loss_mask: Tensor, doc_ids: Tensor) -> Tensor:
    """Return int64[n]: one past the end of its assistant turn for each generated token, 0 for every other.

    A turn is a maximal run of loss_mask inside one document; chat templates always put tokens between two turns.
    """
    n = loss_mask.numel()
    index = torch.arange(n, device=loss_mask.device)
    on = loss_mask & (doc_ids != PADDING_DOC)
    last = on.clone()
    last[:-1] &= ~(on[1:] & (doc_ids[1:] == doc_ids[:-1]))
    # The nearest run end at or after i, found by a running minimum from the right.
    ends = torch.where(last, index + 1, n).flip(0).cummin(0).values.flip(0)
    return torch.where(on, ends, 0)


def supervised(elements: Elements, loss_mask: Tensor, doc_ids: Tensor) -> Tensor:
    """Return bool[N]: whether x_{a+1}, ..., x_{a+d+2} are all generated tokens of one assistant turn.

    loss_mask: bool[n], True where the target generated the token; doc_ids: int64[n]. These are precisely the
    elements that occur when serving: the anchor's input is a generated token and so is everything drafted after it.
    """
    n = loss_mask.numel()
    ends = run_ends(loss_mask, doc_ids)
    first = (elements.anchor + 1).clamp(max=n - 1)
    is_slot = doc_ids[elements.anchor] == doc_ids[first]
    return is_slot & (elements.anchor + elements.depth + 2 < ends[first])
