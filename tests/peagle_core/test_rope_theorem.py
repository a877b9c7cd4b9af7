"""The paper's Theorem B.3, checked in numbers: under rotary embeddings attention scores tell relative positions apart.

s(delta) = rotate(q, p + delta) . rotate(k, p) depends on delta alone, and for almost all (q, k) no two values of delta
give the same score. Hence depth, which is a distance to the last real token, needs no embedding of its own; the
designs of `peagle_core.hidden_state_designs` that add one only cost acceptance. "Almost all" is needed: vectors that
live in a single rotation plane can collide, and such a pair is shown too.
"""

from __future__ import annotations

import math

import torch
from tiny import tiny_config
from torch import Tensor

from peagle_core.drafter import PEagleDrafter, rotate


def scores(q: Tensor, k: Tensor, offset: int, num_deltas: int, head_dim: int) -> Tensor:
    """s(0), ..., s(num_deltas - 1) with the key at position `offset`, in float64."""
    config = tiny_config(hidden_size=2 * head_dim, num_attention_heads=2, num_key_value_heads=2, head_dim=head_dim)
    # The drafter's own frequencies; its cosines are float32, too coarse for gaps as small as these.
    angle = torch.arange(offset, offset + num_deltas)[:, None] * PEagleDrafter(config).rotary.inv_freq.double()
    angle = torch.cat([angle, angle], dim=-1)
    turned_q = rotate(q.expand(num_deltas, 1, -1), angle.cos(), angle.sin())[:, 0]
    turned_k = rotate(k.expand(1, 1, -1), angle[:1].cos(), angle[:1].sin())[0, 0]
    return turned_q @ turned_k


def test_random_queries_and_keys_tell_every_distance_apart():
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        q, k = (torch.randn(32, generator=rng, dtype=torch.float64) for _ in range(2))
        sorted_scores = scores(q, k, 0, 512, 32).sort().values
        assert sorted_scores.diff().min() > 1e-9, "rounding is 1e-13 here"


def test_scores_depend_on_the_distance_alone():
    q, k = (torch.randn(32, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(scores(q, k, 0, 64, 32), scores(q, k, 1000, 64, 32), rtol=0, atol=1e-9)


def test_the_exceptions_exist():
    # q = k in the first plane alone: s(delta) = cos(delta), so distances 0 and 44 (seven turns, nearly) meet.
    q = torch.zeros(32, dtype=torch.float64)
    q[0] = 1.0
    s = scores(q, q, 0, 45, 32)
    assert abs(float(s[44] - s[0])) < 2e-4
    assert abs(44 / (2 * math.pi) - 7) < 3e-3
