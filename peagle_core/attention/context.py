"""The context part of attention: the depth-0 keys that the rows of one pass share, chunk by chunk of rows.

The other part is a row's own chain: `torch` finds it in a narrow band of rows, `chains` gets it row by row, and
`joined` makes one attention of both. Softmax is in float32 or better, also under autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from peagle_core.attention.layout import Layout
from peagle_core.attention.parts import Part, context_part, context_part_backward, join

CPU_CHUNK_ROWS = 256
GPU_CHUNK_ROWS = 128  # without a flash kernel a chunk holds its scores: heads * rows * S


@dataclass(frozen=True)
class Chunk:
    """Hold rows start..stop of one document and the context keys that they see.

    All see the keys context_start..shared_stop, none any from context_stop on; keys between are for some of them.
    """

    start: int
    stop: int
    context_start: int
    shared_stop: int
    context_stop: int

    def parts(self) -> list[slice]:
        """Return the unmasked and the masked context keys.

        The latter begin with a key that every row sees: no row of a part may be without a key.
        """
        split = self.shared_stop if self.shared_stop == self.context_stop else self.shared_stop - 1
        parts = [slice(self.context_start, split), slice(split, self.context_stop)]
        return [part for part in parts if part.start < part.stop]


def plan_chunks(layout: Layout, chunk_rows: int | None) -> list[Chunk]:
    """Cut the rows at document borders and into pieces of at most chunk_rows; None: what suits the device."""
    num_rows = len(layout.first)
    if num_rows == 0:
        return []
    if chunk_rows is None:
        chunk_rows = CPU_CHUNK_ROWS if layout.first.device.type == "cpu" else GPU_CHUNK_ROWS
    borders = (layout.first[1:] != layout.first[:-1]).nonzero().squeeze(-1) + 1
    cuts = [0]
    for end in [*borders.tolist(), num_rows]:
        cuts += [*range(cuts[-1] + chunk_rows, end, chunk_rows), end]
    first, last = layout.first.tolist(), layout.last.tolist()
    return [Chunk(a, b, first[a], last[a], last[b - 1]) for a, b in pairwise(cuts)]


class Context:
    """Hold queries and context keys of one call, heads first.

    Shapes: [kv_heads, group, rows, D] and [kv_heads, C, D], group being the query heads that share a key head.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, chunks: list[Chunk]) -> None:
        self.kv_heads, self.layout, self.chunks = k.shape[1], layout, chunks
        self.q = self.grouped(q)
        self.k_context, self.v_context = heads_first(k), heads_first(v)

    def grouped(self, x: Tensor) -> Tensor:
        """Turn [N, heads, D] into [kv_heads, group, N, D]."""
        return heads_first(x).unflatten(0, (self.kv_heads, -1))

    def nothing(self) -> Part:
        """Return what rows that have seen no key know: output 0, log-sum-exp -inf."""
        return torch.zeros_like(self.q), self.q.new_full((*self.q.shape[:3], 1), float("-inf"))

    def absorb(self, part: Part) -> None:
        """Join the context into a part that is as large as the queries, in place."""
        for c in self.chunks:
            rows = slice(c.start, c.stop)
            q_rows = self.q[:, :, rows].flatten(1, 2)
            out, lse = (x[:, :, rows].flatten(1, 2) for x in part)
            for keys in c.parts():
                k_part, v_part = self.k_context[:, keys], self.v_context[:, keys]
                out, lse = join((out, lse), context_part(q_rows, k_part, v_part, self.mask(c, keys)))
            for whole, joined in zip(part, (out, lse), strict=True):
                whole[:, :, rows] = joined.unflatten(1, (-1, c.stop - c.start))

    def backward(self, grad: Tensor, out: Tensor, lse: Tensor, grad_q: Tensor) -> tuple[Tensor, Tensor]:
        """Add the context's share to grad_q, in place; return dK and dV [kv_heads, C, D].

        grad, out, lse: of the joined attention, as large as the queries.
        """
        grad_k, grad_v = torch.zeros_like(self.k_context), torch.zeros_like(self.v_context)
        for c in self.chunks:
            rows = slice(c.start, c.stop)
            grad_, q_, out_, lse_ = (x[:, :, rows].flatten(1, 2) for x in (grad, self.q, out, lse))
            for keys in c.parts():
                k_part, v_part = self.k_context[:, keys], self.v_context[:, keys]
                d_q, d_k, d_v = context_part_backward(grad_, q_, k_part, v_part, out_, lse_, self.mask(c, keys))
                grad_q[:, :, rows] += d_q.unflatten(1, (-1, c.stop - c.start))
                grad_k[:, keys] += d_k
                grad_v[:, keys] += d_v
        return grad_k, grad_v

    def mask(self, c: Chunk, keys: slice) -> Tensor | None:
        """Return an additive mask [group * rows, keys]; None where every row sees every key."""
        if keys.stop <= c.shared_stop:
            return None
        column = torch.arange(keys.start, keys.stop, device=self.q.device)
        mask = additive(column < self.layout.last[c.start : c.stop, None], self.q.dtype)
        return mask.repeat(self.q.shape[1], 1)


def heads_first(x: Tensor) -> Tensor:
    """Turn [rows, heads, D] into contiguous [heads, rows, D] in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).contiguous()


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as numbers to add: 0 where visible, else -inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
