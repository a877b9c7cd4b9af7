"""The two rules of docs/elements.md as plain loops: what is supervised, and who sees whom."""

from __future__ import annotations

from peagle_core.elements import PADDING_DOC


def is_supervised(a: int, d: int, loss_mask: list[bool], doc_ids: list[int]) -> bool:
    """ "x_{a+1}, ..., x_{a+d+2} are all generated tokens of one assistant turn", and slot a exists."""
    n = len(loss_mask)
    if a + 1 >= n or doc_ids[a] == PADDING_DOC or doc_ids[a] != doc_ids[a + 1]:
        return False
    tokens = range(a + 1, a + d + 3)
    return tokens[-1] < n and all(loss_mask[t] and doc_ids[t] == doc_ids[a] for t in tokens)


def sees(query: tuple[int, int], key: tuple[int, int], doc_ids: list[int]) -> bool:
    """(a,d) sees (a',d') iff same document, and [(d' = 0 and a' <= a) or (a' = a and d' <= d)]; padding sees none."""
    (a, d), (a_, d_) = query, key
    if doc_ids[a] != doc_ids[a_] or doc_ids[a] < 0:
        return False
    return (d_ == 0 and a_ <= a) or (a_ == a and d_ <= d)
