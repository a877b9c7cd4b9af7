"""Attention in N x S scores from dense parts: any device, any dtype, with a backward pass of its own.

A row's keys come in parts that differ in shape: context keys (peagle_core.attention.context), and its own chain, a
narrow band of the rows. Each part is ordinary attention with its own softmax; the parts are joined by their
log-sum-exps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import ElementAttention
from peagle_core.attention.context import additive, heads_first, plan_chunks
from peagle_core.attention.joined import Joined, joined_attention
from peagle_core.attention.parts import Part, plain_part, plain_part_backward
from peagle_core.elements import Elements

# Rows of one block of the own-chain band: its keys are the block's rows and the K-2 before them.
BAND_ROWS = 32


class TorchAttention(ElementAttention):
    def __init__(
        self, elements: Elements, doc_ids: Tensor, chunk_rows: int | None = None, *, slots: Tensor | None = None
    ) -> None:
        super().__init__(elements, doc_ids, slots=slots)
        self.chunks = plan_chunks(self.layout, chunk_rows)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return joined_attention(_Band, q, self.context_of(k, v, context), k, v, self)


class _Band(Joined):
    """All rows at once, in blocks of BAND_ROWS; block b's own keys are its rows and the reach-1 rows before it."""

    def __init__(self, q: Tensor, kv: tuple[Tensor, ...], plan: TorchAttention) -> None:
        super().__init__(q, kv[0], kv[1], plan.layout, plan.chunks)
        self.k, self.v = heads_first(kv[2]), heads_first(kv[3])
        self.reach = int(self.layout.own.max()) if len(q) else 0

    def own(self) -> Part:
        if not self.reach:
            return self.nothing()
        keys, values = self.band_keys(self.k), self.band_keys(self.v)
        out, lse = plain_part(self.band_blocks(self.q), keys, values, self.band_mask())
        return self.from_band_blocks(out).contiguous(), self.from_band_blocks(lse).contiguous()

    def own_backward(self, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.reach:
            d_k, d_v = (torch.zeros_like(x.transpose(0, 1)) for x in (self.k, self.v))
            return torch.zeros_like(self.q), d_k, d_v
        grad_, q_, out_, lse_ = (self.band_blocks(x) for x in (grad, self.q, out, lse))
        keys, values = self.band_keys(self.k), self.band_keys(self.v)
        d_q, d_k, d_v = plain_part_backward(grad_, q_, keys, values, out_, lse_, self.band_mask())
        d_k, d_v = (self.from_band_keys(x).transpose(0, 1) for x in (d_k, d_v))
        return self.from_band_blocks(d_q).contiguous(), d_k, d_v

    def band_blocks(self, x: Tensor) -> Tensor:
        """Cut rows into blocks: [kv_heads, group, N, X] -> [kv_heads * blocks, group * BAND_ROWS, X].

        The last block is filled with zeros.
        """
        pad = -x.shape[2] % BAND_ROWS
        x = F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, BAND_ROWS))
        return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def from_band_blocks(self, x: Tensor) -> Tensor:
        """Undo `band_blocks`."""
        x = x.unflatten(0, (self.kv_heads, -1)).unflatten(2, (-1, BAND_ROWS))
        return x.transpose(1, 2).flatten(2, 3)[:, :, : self.q.shape[2]]

    def band_keys(self, x: Tensor) -> Tensor:
        """Cut keys into overlapping blocks: [kv_heads, N, D] -> [kv_heads * blocks, reach - 1 + BAND_ROWS, D]."""
        pad = -x.shape[1] % BAND_ROWS
        x = F.pad(x, (0, 0, self.reach - 1, pad))
        return x.unfold(1, self.reach - 1 + BAND_ROWS, BAND_ROWS).transpose(2, 3).flatten(0, 1)

    def from_band_keys(self, grad: Tensor) -> Tensor:
        """Apply the adjoint of `band_keys`: gradients of a key add up over the two blocks that may hold it."""
        grad = grad.unflatten(0, (self.kv_heads, -1))
        own_block, before = grad[:, :, self.reach - 1 :], grad[:, 1:, : self.reach - 1]
        own_block[:, :-1, BAND_ROWS - (self.reach - 1) :] += before
        return own_block.flatten(1, 2)[:, : self.k.shape[1]]

    def band_mask(self) -> Tensor:
        """Return an additive mask [kv_heads * blocks, group * BAND_ROWS, reach - 1 + BAND_ROWS].

        Rows without a chain see nothing.
        """
        pad = -len(self.layout.own) % BAND_ROWS
        own = F.pad(self.layout.own, (0, pad)).view(-1, BAND_ROWS, 1)
        row = torch.arange(BAND_ROWS, device=own.device)[:, None]
        back = row + self.reach - 1 - torch.arange(self.reach - 1 + BAND_ROWS, device=own.device)
        mask = additive((back >= 0) & (back < own), self.q.dtype)
        return mask.repeat(self.kv_heads, self.q.shape[1], 1)
