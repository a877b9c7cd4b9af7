"""One training step of a small drafter, and what its tests compare: the loss sum and every gradient."""

from __future__ import annotations

import pytest
import torch
from layouts import Stream
from tiny import random_batch, tiny_drafter
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.training import Batch, loss_and_backward

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 23, "mask_token_id": 22}  # fmt: skip


def gradients(drafter: PEagleDrafter) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in drafter.named_parameters()}


def step(drafter: PEagleDrafter, batch: Batch, elements: Elements, **options) -> tuple[float, dict[str, Tensor]]:
    """Loss sum and all gradients of one call from zero."""
    drafter.zero_grad(set_to_none=True)
    metrics = loss_and_backward(drafter, batch, elements, **options)
    return float(metrics.loss_sum), gradients(drafter)


def steps_at_both_precisions(
    config: PEagleConfig, packed: Stream, mode: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a flat float32 step, and of one in `mode` under bf16 autocast, whose loss sum is held near."""
    drafter = tiny_drafter(config, dtype=torch.float32, scale=1.0)
    batch, head = random_batch(config, *packed, dtype=torch.float32)
    elements = sample_elements(*packed, 5, 1.0)
    loss_sum, grads = step(drafter, batch, elements, target_head=head)
    with torch.autocast("cpu", torch.bfloat16):
        low_loss, low_grads = step(drafter, batch, elements, target_head=head, mode=mode)
    assert low_loss == pytest.approx(loss_sum, rel=0.02)
    return grads, low_grads


def assert_same(
    a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]], tolerance: float = 1e-10
) -> None:
    assert a[0] == pytest.approx(b[0], rel=tolerance, abs=tolerance)
    for name in a[1]:
        torch.testing.assert_close(a[1][name], b[1][name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def single(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(*(value[start:stop] for value in vars(batch).values()))


def cut(elements: Elements, start: int, stop: int) -> Elements:
    kept = elements[(elements.anchor >= start) & (elements.anchor < stop)]
    return Elements(kept.anchor - start, kept.depth)
