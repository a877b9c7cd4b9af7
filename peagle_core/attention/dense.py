"""The reference backend: one dense mask, N x N (or N x (C + N) with a context from elsewhere). Quadratic in N."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import ElementAttention, expand_kv
from peagle_core.elements import Elements
from peagle_core.mask import dense_mask


class DenseAttention(ElementAttention):
    def __init__(self, elements: Elements, doc_ids: Tensor, *, slots: Tensor | None = None) -> None:
        super().__init__(elements, doc_ids, slots=slots)
        self.mask = dense_mask(elements, doc_ids)
        if slots is not None:
            everything = Elements(
                torch.cat([slots, elements.anchor]), torch.cat([torch.zeros_like(slots), elements.depth])
            )
            self.mask = dense_mask(everything, doc_ids)[len(slots) :]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if self.slots is not None:
            k_context, v_context = self.context_of(k, v, context)
            k, v = torch.cat([k_context.to(k.dtype), k]), torch.cat([v_context.to(v.dtype), v])
        k, v = expand_kv(k, q.shape[1]), expand_kv(v, q.shape[1])
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(0, 1)
