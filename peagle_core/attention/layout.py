"""Which keys each row sees, as two ranges: the mask rule in the form that fast backends compute with.

In anchor-major order row i sees the depth-0 keys ("context") first[i]..last[i]-1, and of its own chain the own[i] rows
that end with itself: i-own[i]+1..i. Keys at depth >= 1 are never seen from another chain (docs/training_at_scale.md),
so N x S scores suffice and no N x N mask exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.elements import PADDING_DOC, Elements


@dataclass(frozen=True)
class Layout:
    """first, last, own: int64[N], see above; first and last never decrease with i.

    context_rows: int64[C], the rows that are the context keys; None when the context comes from elsewhere.
    """

    first: Tensor
    last: Tensor
    own: Tensor
    context_rows: Tensor | None


def make_layout(elements: Elements, doc_ids: Tensor, slots: Tensor | None = None) -> Layout:
    """Return the ranges of N anchor-major elements.

    A document is one run of equal doc_ids; padding sees nothing.
    slots: int64[C], ascending: the slots of context keys that will come from elsewhere; the elements are then all at
    depth >= 1 (ValueError otherwise). Without it their own depth-0 rows are the context.
    """
    anchor, depth = elements.anchor.contiguous(), elements.depth
    context_rows = None
    if slots is None:
        context_rows = (depth == 0).nonzero().squeeze(-1)
        slots = anchor[context_rows]
    elif (depth == 0).any():
        raise ValueError("rows at depth 0 bring their own context, so `slots` must be left out")
    slot_doc = doc_ids[slots]
    index = torch.arange(len(slots), device=slots.device)
    is_start = torch.ones_like(index, dtype=torch.bool)
    is_start[1:] = slot_doc[1:] != slot_doc[:-1]
    doc_first = torch.where(is_start, index, 0).cummax(0).values if len(slots) else index

    last = torch.searchsorted(slots, anchor, right=True)
    # The nearest slot at or before the anchor tells where its document begins, if it is of the same document.
    nearest = (last - 1).clamp(min=0)
    sees_context = (last > 0) & (doc_ids[anchor] != PADDING_DOC)
    if len(slots):
        sees_context &= slot_doc[nearest] == doc_ids[anchor]
        first = torch.where(sees_context, doc_first[nearest], last)
    else:
        first = last

    row = torch.arange(len(elements), device=anchor.device)
    chain_first = torch.searchsorted(anchor, anchor)
    has_real_row = depth[chain_first] == 0 if len(elements) else row.bool()
    own = row - chain_first + 1 - has_real_row.long()
    own = torch.where((depth == 0) | (doc_ids[anchor] == PADDING_DOC), 0, own)
    return Layout(first, last, own, context_rows)
