"""What every attention backend is: built once per layout, called once per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from peagle_core.attention.layout import Layout, make_layout
from peagle_core.elements import Elements


class ElementAttention(ABC):
    """Attention under the P-EAGLE mask rule for one anchor-major layout of N elements.

    slots: None when the elements' own depth-0 rows are the context. Otherwise int64[C], the slots whose depth-0 keys
    and values each call brings along (streaming): the elements are then chains, all at depth >= 1.
    """

    def __init__(self, elements: Elements, doc_ids: Tensor, *, slots: Tensor | None = None) -> None:
        self.elements = elements
        self.doc_ids = doc_ids
        self.slots = slots
        self.layout: Layout = make_layout(elements, doc_ids, slots)

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend. q: [N, heads, D]; k, v: [N, kv_heads, D], rotary embedding applied -> [N, heads, D].

        context: keys and values [C, kv_heads, D] of `slots`, when those were given.
        """

    def context_of(self, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return the context keys and values: those brought along, or the depth-0 rows of k and v."""
        if (context is None) != (self.slots is None):
            raise ValueError("context keys come with a call exactly when the layout was made with `slots`")
        if context is not None:
            return context
        rows = self.layout.context_rows
        return k[rows], v[rows]


def expand_kv(x: Tensor, num_heads: int) -> Tensor:
    """Repeat key/value heads: [N, kv_heads, D] -> [N, num_heads, D].

    Query head h reads key/value head h // (heads / kv_heads).
    """
    return x if x.shape[1] == num_heads else x.repeat_interleave(num_heads // x.shape[1], dim=1)
