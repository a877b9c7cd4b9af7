"""Attention over elements, behind one function: `make_attention(elements, doc_ids, backend)`.

`dense` is the reference (one N x N mask); `torch` and `triton` cost N x S scores and never build that mask.
"""

from __future__ import annotations

from torch import Tensor

from peagle_core.attention.base import ElementAttention
from peagle_core.attention.dense import DenseAttention
from peagle_core.attention.torch import TorchAttention
from peagle_core.attention.triton import TritonAttention
from peagle_core.elements import Elements
from peagle_core.errors import InputError

BACKENDS: dict[str, type[ElementAttention]] = {
    "dense": DenseAttention,
    "torch": TorchAttention,
    "triton": TritonAttention,
}

# What `torch` was called, though the backend that calls PyTorch's SDPA is `dense`.
ALIASES = {"sdpa": "torch"}

__all__ = ["ALIASES", "BACKENDS", "ElementAttention", "check_backend", "make_attention"]


def check_backend(name: str) -> str:
    """Return the backend's own name, for an alias too. Raises InputError on an unknown backend."""
    name = ALIASES.get(name, name)
    if name not in BACKENDS:
        raise InputError(f"unknown attention backend {name!r}; choose from {', '.join(BACKENDS)}")
    return name


def make_attention(
    elements: Elements, doc_ids: Tensor, backend: str = "torch", slots: Tensor | None = None
) -> ElementAttention:
    """Return the attention of one layout: call it with q [N,h,D], k and v [N,hk,D] in the order of `elements`.

    elements must be anchor-major (`elements.order("anchor")`). slots: int64[C], ascending, when the context keys come
    from elsewhere: each call then brings them along as `context=(k [C,hk,D], v [C,hk,D])`. Raises InputError on an
    unknown backend.
    """
    return BACKENDS[check_backend(backend)](elements, doc_ids, slots=slots)
