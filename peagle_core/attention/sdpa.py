"""Attention in N x S scores: chunks of rows against the depth-0 keys before them plus their own chunk.

In anchor-major order a chunk that starts at a chain border needs only the depth-0 keys of its documents that come
before it, and its own rows: keys at depth >= 1 are never seen from another chain (design section 2, fact 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import ElementAttention, expand_kv
from peagle_core.elements import Elements
from peagle_core.mask import dense_mask

CHUNK_ROWS = 256


@dataclass(frozen=True)
class _Chunk:
    """Rows start..stop attend to the depth-0 keys context_start..context_stop and to themselves, as mask says."""

    start: int
    stop: int
    context_start: int
    context_stop: int
    mask: Tensor  # bool[rows, context + rows]


class SdpaAttention(ElementAttention):
    def __init__(self, elements: Elements, doc_ids: Tensor, chunk_rows: int = CHUNK_ROWS) -> None:
        super().__init__(elements, doc_ids)
        self.context = (elements.depth == 0).nonzero().squeeze(-1)
        self.chunks = self._plan(chunk_rows)

    def _plan(self, chunk_rows: int) -> list[_Chunk]:
        elements, doc_ids = self.elements, self.doc_ids
        doc = doc_ids[elements.anchor]
        context_doc = doc[self.context]
        starts = self.context.tolist()  # every chain begins with its depth-0 row
        chunks = []
        start = context_stop = 0
        while start < len(elements):
            limit = start + chunk_rows
            next_context = int(torch.searchsorted(self.context, limit, right=True)) - 1
            # A chain longer than the chunk still goes in whole.
            next_context = max(next_context, context_stop + 1)
            stop = len(elements) if limit >= len(elements) or next_context >= len(starts) else starts[next_context]
            same_doc = (context_doc[:context_stop] == doc[start]).nonzero()
            context_start = int(same_doc[0]) if same_doc.numel() else context_stop
            before = context_doc[None, context_start:context_stop] == doc[start:stop, None]
            own = dense_mask(elements[start:stop], doc_ids)
            mask = torch.cat([before, own], dim=1)
            chunks.append(_Chunk(start, stop, context_start, context_stop, mask))
            start, context_stop = stop, next_context if stop < len(elements) else len(starts)
        return chunks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1) for x in (q, expand_kv(k, q.shape[1]), expand_kv(v, q.shape[1])))
        k_context, v_context = k[:, self.context], v[:, self.context]
        out = [q[:, :0]]  # a stream of one-token documents has no elements, hence no chunks
        for c in self.chunks:
            keys = torch.cat([k_context[:, c.context_start : c.context_stop], k[:, c.start : c.stop]], dim=1)
            values = torch.cat([v_context[:, c.context_start : c.context_stop], v[:, c.start : c.stop]], dim=1)
            out.append(F.scaled_dot_product_attention(q[:, c.start : c.stop], keys, values, attn_mask=c.mask))
        return torch.cat(out, dim=1).transpose(0, 1)
