"""Random queries, keys and values, and what the tests of attention compare: the output and its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.elements import Elements


def random_qkv(elements: Elements, heads: int, kv_heads: int, head_dim: int, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = [(len(elements), h, head_dim) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]


def output_and_gradients(attend, qkv: list[Tensor]) -> list[Tensor]:
    output = attend(*qkv)
    # A fixed, uneven upstream gradient.
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).cos()
    return [output, *torch.autograd.grad((output * weight).sum(), qkv, materialize_grads=True)]


def assert_same(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-12) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
