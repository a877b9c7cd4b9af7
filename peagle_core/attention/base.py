"""What every attention backend is: built once per layout, called once per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from peagle_core.elements import Elements


class ElementAttention(ABC):
    """Attention under the P-EAGLE mask rule for one anchor-major layout of N elements."""

    def __init__(self, elements: Elements, doc_ids: Tensor) -> None:
        self.elements = elements
        self.doc_ids = doc_ids

    @abstractmethod
    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [N, heads, D]; k, v: [N, kv_heads, D], rotary embedding applied -> [N, heads, D]."""


def expand_kv(x: Tensor, num_heads: int) -> Tensor:
    """[N, kv_heads, D] -> [N, num_heads, D]: query head h reads key/value head h // (heads / kv_heads)."""
    return x if x.shape[1] == num_heads else x.repeat_interleave(num_heads // x.shape[1], dim=1)
