"""Who may attend to whom: the mask rule of P-EAGLE as one predicate, and its dense form (the reference)."""

from __future__ import annotations

from torch import Tensor

from peagle_core.elements import PADDING_DOC, Elements


def may_attend(q_anchor: Tensor, q_depth: Tensor, k_anchor: Tensor, k_depth: Tensor) -> Tensor:
    """bool, broadcast: inside one document (a,d) sees (a',d') iff (d'=0 and a'<=a) or (a'=a and d'<=d).

    It is what a causal pass over [real tokens ..., MASK, MASK, ...] sees when serving.
    """
    context = (k_depth == 0) & (k_anchor <= q_anchor)
    own_chain = (k_anchor == q_anchor) & (k_depth <= q_depth)
    return context | own_chain


def dense_mask(elements: Elements, doc_ids: Tensor) -> Tensor:
    """bool[N, N], True = row may attend to column. doc_ids: int64[n] of the packed stream; padding sees nothing."""
    a, d = elements.anchor, elements.depth
    doc = doc_ids[a]
    same_doc = (doc[:, None] == doc[None, :]) & (doc != PADDING_DOC)[:, None]
    return same_doc & may_attend(a[:, None], d[:, None], a[None, :], d[None, :])
