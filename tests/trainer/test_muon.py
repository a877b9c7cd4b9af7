"""Muon on a CPU: torch's own update, but exact in float32 and without emulated bfloat16."""

from __future__ import annotations

import pytest
import torch

from trainer.train import muon
from trainer.train.muon import Muon, iteration_dtype, orthogonalised

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_singular_vectors_stay_and_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix, COEFFICIENTS, 5)
    assert found.dtype == torch.float32
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    rotated = u.T @ found.double() @ v.T  # diagonal: the new singular values
    off = rotated - torch.diag(rotated.diagonal())
    assert off.abs().max() < 1e-5  # bfloat16 leaves 1e-2
    assert rotated.diagonal()[values > 0.05 * values.max()].sub(1).abs().max() < 0.4


@pytest.mark.parametrize("shape", [(24, 48), (48, 24)])
def test_steps_are_those_of_torch_within_its_bfloat16(shape):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    steps = (
        Muon([ours], torch.float32, lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in steps:
            optimizer.step()
    moved = (theirs - start).norm()
    assert moved > 0.1
    assert (ours - theirs).norm() < 0.02 * moved
    assert steps[0].state_dict().keys() == steps[1].state_dict().keys()
    assert torch.equal(*(s.state_dict()["state"][0]["momentum_buffer"] for s in steps))


def test_it_iterates_in_bfloat16_where_that_is_asked_for_and_fast(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(muon.torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert iteration_dtype("cpu", "bf16") == (torch.bfloat16 if has else torch.float32)
        assert iteration_dtype("cpu", "fp32") == torch.float32
        assert iteration_dtype("cuda", "fp32") == torch.bfloat16
