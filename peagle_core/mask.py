"""Who may attend to whom: the mask rule of P-EAGLE as one predicate, and its dense form, the reference.

Beside them the dense form built once for the longest document and sliced for every other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from peagle_core.elements import PADDING_DOC, Elements


def may_attend(q_anchor: Tensor, q_depth: Tensor, k_anchor: Tensor, k_depth: Tensor) -> Tensor:
    """Return whether (a,d) sees (a',d') in one document: iff (d'=0 and a'<=a) or (a'=a and d'<=d).

    bool, broadcast.
    It is what a causal pass over [real tokens ..., MASK, MASK, ...] sees when serving.
    """
    context = (k_depth == 0) & (k_anchor <= q_anchor)
    own_chain = (k_anchor == q_anchor) & (k_depth <= q_depth)
    return context | own_chain


def dense_mask(elements: Elements, doc_ids: Tensor) -> Tensor:
    """Return bool[N, N], True = row may attend to column.

    doc_ids: int64[n] of the packed stream; padding sees nothing.
    """
    a, d = elements.anchor, elements.depth
    doc = doc_ids[a]
    same_doc = (doc[:, None] == doc[None, :]) & (doc != PADDING_DOC)[:, None]
    return same_doc & may_attend(a[:, None], d[:, None], a[None, :], d[None, :])


SELECT_ROWS = 64


class AmortizedMask:
    """The mask of every pair (a, d) of one document of max_length slots, built once (paper sec. 3.1).

    Row and column a * K + d stand for (a, d). In this anchor-major order the mask of every shorter document is one
    top-left corner; in the paper's depth-major order it is the corner of each of the K x K depth blocks, which here is
    `full.view(L, K, L, K)` with the anchors outside. The rule looks only at a' <= a and d' <= d, so a corner is exact.
    It holds (max_length * K)^2 bytes: 256 MiB at 2048 slots and K = 8, 4 GiB at 8192.
    """

    def __init__(self, max_length: int, num_depths: int) -> None:
        self.max_length, self.num_depths = max_length, num_depths
        pairs = max_length * num_depths
        self.full = torch.zeros(pairs, pairs, dtype=torch.bool)
        blocks = self.full.view(max_length, num_depths, max_length, num_depths)
        blocks[:, :, :, 0] = torch.ones(max_length, max_length, dtype=torch.bool).tril()[:, None]
        same_anchor = blocks.diagonal(dim1=0, dim2=2)
        same_anchor |= torch.ones(num_depths, num_depths, dtype=torch.bool).tril()[..., None]

    def slice(self, length: int) -> Tensor:
        """Return the mask of all pairs of a document of `length` slots, bool[length * K, length * K]; a view, O(1).

        Raises ValueError beyond max_length.
        """
        if not 0 <= length <= self.max_length:
            raise ValueError(f"length {length} is outside 0..{self.max_length}, the length the mask was built for")
        return self.full[: length * self.num_depths, : length * self.num_depths]

    def select(self, elements: Elements, doc_ids: Tensor) -> Tensor:
        """Pick the rows and columns of the sampled pairs: bool[N, N] on the CPU = dense_mask(elements, doc_ids).

        The packed row may be at most max_length slots long and K deep (ValueError otherwise).
        """
        anchor, depth = elements.anchor, elements.depth
        if len(elements) and (int(anchor.max()) >= self.max_length or int(depth.max()) >= self.num_depths):
            raise ValueError(f"an element lies outside the {self.max_length} slots and {self.num_depths} depths")
        pair = anchor * self.num_depths + depth
        mask = torch.empty(len(pair), len(pair), dtype=torch.bool)
        # NumPy picks columns four times faster than torch does; a few rows at a time, they stay in the cache.
        full, picked, columns = self.full.numpy(), mask.numpy(), pair.cpu().numpy()
        for low in range(0, len(columns), SELECT_ROWS):
            rows = slice(low, low + SELECT_ROWS)
            np.take(full[columns[rows]], columns, axis=1, out=picked[rows], mode="clip")
        doc = doc_ids[anchor].cpu()
        if (doc[1:] != doc[:-1]).any() or (doc == PADDING_DOC).any():
            mask &= (doc[:, None] == doc) & (doc != PADDING_DOC)[:, None]
        return mask
