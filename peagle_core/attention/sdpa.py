"""Attention in N x S scores from dense parts: any device, any dtype, with a backward pass of its own.

A row's keys come in parts that differ in shape: context keys that every row of its chunk sees (no mask), the last few
context keys of the chunk (masked), and its own chain (a narrow band). Each part is ordinary attention with its own
softmax; the parts are joined by their log-sum-exps. Only the joined output and log-sum-exp are kept: given those, the
backward pass of each part is again ordinary (the identity flash attention rests on). Softmax is in float32 or better,
also under autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import ElementAttention
from peagle_core.attention.layout import Layout
from peagle_core.attention.parts import context_part, context_part_backward, join, plain_part, plain_part_backward
from peagle_core.elements import Elements

CPU_CHUNK_ROWS = 256
GPU_CHUNK_ROWS = 128  # without a flash kernel a chunk holds its scores: heads * rows * S
# Rows of one block of the own-chain band: its keys are the block's rows and the K-2 before them.
BAND_ROWS = 32


@dataclass(frozen=True)
class Chunk:
    """Rows start..stop of one document: all see the context keys context_start..shared_stop, none any from
    context_stop on; keys between are for some of them.
    """

    start: int
    stop: int
    context_start: int
    shared_stop: int
    context_stop: int

    def parts(self) -> list[slice]:
        """The unmasked and the masked context keys. The latter begin with a key that every row sees: no row of a part
        may be without a key."""
        split = self.shared_stop if self.shared_stop == self.context_stop else self.shared_stop - 1
        parts = [slice(self.context_start, split), slice(split, self.context_stop)]
        return [part for part in parts if part.start < part.stop]


def plan_chunks(layout: Layout, chunk_rows: int) -> list[Chunk]:
    """Cut the rows at document borders and into pieces of at most chunk_rows."""
    num_rows = len(layout.first)
    if num_rows == 0:
        return []
    borders = (layout.first[1:] != layout.first[:-1]).nonzero().squeeze(-1) + 1
    cuts = [0]
    for end in [*borders.tolist(), num_rows]:
        cuts += [*range(cuts[-1] + chunk_rows, end, chunk_rows), end]
    first, last = layout.first.tolist(), layout.last.tolist()
    return [Chunk(a, b, first[a], last[a], last[b - 1]) for a, b in pairwise(cuts)]


class SdpaAttention(ElementAttention):
    def __init__(
        self, elements: Elements, doc_ids: Tensor, chunk_rows: int | None = None, *, slots: Tensor | None = None
    ) -> None:
        super().__init__(elements, doc_ids, slots=slots)
        on_cpu = elements.anchor.device.type == "cpu"
        self.chunks = plan_chunks(self.layout, chunk_rows or (CPU_CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return _JoinedAttention.apply(q, *self.context_of(k, v, context), k, v, self.layout, self.chunks)


class _Problem:
    """The tensors of one call as [kv_heads, group, rows, D], group being the query heads that share a key head."""

    def __init__(self, q: Tensor, kv: tuple[Tensor, ...], layout: Layout) -> None:
        self.kv_heads, self.layout = kv[0].shape[1], layout
        self.q = self.grouped(q)
        self.k_context, self.v_context, self.k, self.v = (_heads_first(x) for x in kv)
        self.reach = int(layout.own.max()) if len(q) else 0

    def grouped(self, x: Tensor) -> Tensor:
        """[N, heads, D] -> [kv_heads, group, N, D]"""
        return _heads_first(x).unflatten(0, (self.kv_heads, -1))

    def mask(self, c: Chunk, keys: slice) -> Tensor | None:
        """Additive [group * rows, keys]; None where every row sees every key."""
        if keys.stop <= c.shared_stop:
            return None
        column = torch.arange(keys.start, keys.stop, device=self.q.device)
        mask = _additive(column < self.layout.last[c.start : c.stop, None], self.q.dtype)
        return mask.repeat(self.q.shape[1], 1)

    # The band: all rows at once, in blocks of BAND_ROWS; block b's keys are its rows and the reach-1 rows before it.

    def band_blocks(self, x: Tensor) -> Tensor:
        """[kv_heads, group, N, X] -> [kv_heads * blocks, group * BAND_ROWS, X], zeros after the last row."""
        pad = -x.shape[2] % BAND_ROWS
        x = F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, BAND_ROWS))
        return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def from_band_blocks(self, x: Tensor) -> Tensor:
        """The inverse of `band_blocks`."""
        x = x.unflatten(0, (self.kv_heads, -1)).unflatten(2, (-1, BAND_ROWS))
        return x.transpose(1, 2).flatten(2, 3)[:, :, : self.q.shape[2]]

    def band_keys(self, x: Tensor) -> Tensor:
        """[kv_heads, N, D] -> [kv_heads * blocks, reach - 1 + BAND_ROWS, D]"""
        pad = -x.shape[1] % BAND_ROWS
        x = F.pad(x, (0, 0, self.reach - 1, pad))
        return x.unfold(1, self.reach - 1 + BAND_ROWS, BAND_ROWS).transpose(2, 3).flatten(0, 1)

    def from_band_keys(self, grad: Tensor) -> Tensor:
        """The adjoint of `band_keys`: gradients of a key add up over the two blocks that may hold it."""
        grad = grad.unflatten(0, (self.kv_heads, -1))
        own_block, before = grad[:, :, self.reach - 1 :], grad[:, 1:, : self.reach - 1]
        own_block[:, :-1, BAND_ROWS - (self.reach - 1) :] += before
        return own_block.flatten(1, 2)[:, : self.k.shape[1]]

    def band_mask(self) -> Tensor:
        """Additive [kv_heads * blocks, group * BAND_ROWS, reach - 1 + BAND_ROWS]; rows without a chain see nothing."""
        pad = -len(self.layout.own) % BAND_ROWS
        own = F.pad(self.layout.own, (0, pad)).view(-1, BAND_ROWS, 1)
        row = torch.arange(BAND_ROWS, device=own.device)[:, None]
        back = row + self.reach - 1 - torch.arange(self.reach - 1 + BAND_ROWS, device=own.device)
        mask = _additive((back >= 0) & (back < own), self.q.dtype)
        return mask.repeat(self.kv_heads, self.q.shape[1], 1)


def _heads_first(x: Tensor) -> Tensor:
    """[rows, heads, D] -> contiguous [heads, rows, D] in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).contiguous()


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


class _JoinedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k_context, v_context, k, v, layout, chunks):
        with torch.autocast(q.device.type, enabled=False):
            problem = _Problem(q, (k_context, v_context, k, v), layout)
            out, lse = torch.zeros_like(problem.q), problem.q.new_full((*problem.q.shape[:3], 1), float("-inf"))
            if problem.reach:
                keys, values = problem.band_keys(problem.k), problem.band_keys(problem.v)
                band = plain_part(problem.band_blocks(problem.q), keys, values, problem.band_mask())
                out, lse = (problem.from_band_blocks(x).contiguous() for x in band)
            for c in chunks:
                rows = slice(c.start, c.stop)
                q_rows = problem.q[:, :, rows].flatten(1, 2)
                joined = out[:, :, rows].flatten(1, 2), lse[:, :, rows].flatten(1, 2)
                for keys in c.parts():
                    k_part, v_part = problem.k_context[:, keys], problem.v_context[:, keys]
                    joined = join(joined, context_part(q_rows, k_part, v_part, problem.mask(c, keys)))
                for whole, part in zip((out, lse), joined, strict=True):
                    whole[:, :, rows] = part.unflatten(1, (-1, c.stop - c.start))
        ctx.layout, ctx.chunks = layout, chunks
        out = out.flatten(0, 1).transpose(0, 1).to(q.dtype)
        ctx.save_for_backward(q, k_context, v_context, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, *kv, out, lse = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            problem = _Problem(q, kv, ctx.layout)
            # What the backward pass of any part needs to know of the others: the joined output and log-sum-exp.
            rows_of = (problem.grouped(grad), problem.q, problem.grouped(out), lse)
            grad_k_context, grad_v_context = torch.zeros_like(problem.k_context), torch.zeros_like(problem.v_context)
            grad_q, grad_k, grad_v = (
                torch.zeros_like(problem.q),
                torch.zeros_like(problem.k),
                torch.zeros_like(problem.v),
            )
            if problem.reach:
                grad_, q_, out_, lse_ = (problem.band_blocks(x) for x in rows_of)
                keys, values = problem.band_keys(problem.k), problem.band_keys(problem.v)
                d_q, d_k, d_v = plain_part_backward(grad_, q_, keys, values, out_, lse_, problem.band_mask())
                grad_q = problem.from_band_blocks(d_q).contiguous()
                grad_k, grad_v = problem.from_band_keys(d_k), problem.from_band_keys(d_v)
            for c in ctx.chunks:
                rows = slice(c.start, c.stop)
                grad_, q_, out_, lse_ = (x[:, :, rows].flatten(1, 2) for x in rows_of)
                for keys in c.parts():
                    k_part, v_part = problem.k_context[:, keys], problem.v_context[:, keys]
                    d_q, d_k, d_v = context_part_backward(grad_, q_, k_part, v_part, out_, lse_, problem.mask(c, keys))
                    grad_q[:, :, rows] += d_q.unflatten(1, (-1, c.stop - c.start))
                    grad_k_context[:, keys] += d_k
                    grad_v_context[:, keys] += d_v
        grads = (grad_q.flatten(0, 1), grad_k_context, grad_v_context, grad_k, grad_v)
        return *(g.transpose(0, 1).to(x.dtype) for g, x in zip(grads, (q, *kv), strict=True)), None, None
