"""Attention of the next row of many chains: context keys up to the anchor, then the chain's own rows so far.

What autoregressive drafting (EAGLE-3) needs: depth by depth each chain has one row, whose own keys, at depths 1 to d,
come from d passes. The same mask rule as in one pass over all depths, at N x S scores for N chains.
"""

from __future__ import annotations

from torch import Tensor

from peagle_core.attention.context import heads_first, plan_chunks
from peagle_core.attention.joined import Joined, joined_attention
from peagle_core.attention.layout import make_layout
from peagle_core.attention.parts import Part, plain_part, plain_part_backward
from peagle_core.elements import Elements


class ChainAttention:
    """elements: one per chain, ascending anchors, all at depth >= 1; slots: int64[C], those of the context keys."""

    def __init__(self, elements: Elements, doc_ids: Tensor, slots: Tensor, chunk_rows: int | None = None) -> None:
        self.layout = make_layout(elements, doc_ids, slots)
        self.chunks = plan_chunks(self.layout, chunk_rows)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """Attend the chains' newest rows; return [N, heads, D].

        q: [N, heads, D]; k, v: [N, d, kv_heads, D], each chain's rows at depths 1 to d; context: keys and values [C,
        kv_heads, D].
        q: [N, heads, D]; k, v: [N, d, kv_heads, D], each chain's rows at depths 1 to d; context: keys and values [C,
        kv_heads, D]
        """
        return joined_attention(_Chains, q, context, k, v, self)


class _Chains(Joined):
    """One call. Own keys as [kv_heads * N, d, D]."""

    def __init__(self, q: Tensor, kv: tuple[Tensor, ...], plan: ChainAttention) -> None:
        super().__init__(q, kv[0], kv[1], plan.layout, plan.chunks)
        self.k, self.v = (heads_first(x.flatten(0, 1)).unflatten(1, x.shape[:2]).flatten(0, 1) for x in kv[2:])

    def by_chain(self, x: Tensor) -> Tensor:
        """Turn rows into chains: [kv_heads, group, N, X] -> [kv_heads * N, group, X]."""
        return x.transpose(1, 2).flatten(0, 1)

    def from_chains(self, x: Tensor) -> Tensor:
        """Undo `by_chain`; the result is contiguous."""
        return x.unflatten(0, (self.kv_heads, -1)).transpose(1, 2).contiguous()

    def own(self) -> Part:
        out, lse = plain_part(self.by_chain(self.q), self.k, self.v, None)
        return self.from_chains(out), self.from_chains(lse)

    def own_backward(self, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grad_, q_, out_, lse_ = (self.by_chain(x) for x in (grad, self.q, out, lse))
        d_q, d_k, d_v = plain_part_backward(grad_, q_, self.k, self.v, out_, lse_, None)
        d_k, d_v = (x.unflatten(0, (self.kv_heads, -1)).permute(1, 2, 0, 3) for x in (d_k, d_v))
        return self.from_chains(d_q), d_k, d_v
