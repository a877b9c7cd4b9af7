"""The reference backend: one dense N x N mask. Readable, quadratic in N."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import ElementAttention, expand_kv
from peagle_core.elements import Elements
from peagle_core.mask import dense_mask


class DenseAttention(ElementAttention):
    def __init__(self, elements: Elements, doc_ids: Tensor) -> None:
        super().__init__(elements, doc_ids)
        self.mask = dense_mask(elements, doc_ids)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = expand_kv(k, q.shape[1]), expand_kv(v, q.shape[1])
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).transpose(0, 1)
