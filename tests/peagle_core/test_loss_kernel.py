"""The loss kernel under Triton's interpreter, against the torch chunk (mechanism: see test_attention_triton.py)."""

from __future__ import annotations

import pytest
import torch
from interpreter import interpreted, outside, run_under_the_interpreter

from peagle_core.loss import Labels, chunk_loss, chunk_loss_triton, distillation_loss


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@interpreted
@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize(("vocab", "tv"), [(1, 0.0), (7, 0.0), (64, 0.0), (5000, 0.0), (7, 0.3), (5000, 1.0)])
def test_a_chunk(loss, vocab, tv):
    draft, target = 5 * torch.randn(9, vocab), 5 * torch.randn(4, vocab)
    if vocab > 4:
        target[0, 3] = target[0, 1] = 30.0  # equal maxima: the first one counts
        draft[0, 3] = 30.0
    target_row, weight = torch.tensor([0, 0, 1, 2, 3, 3, 1, 0, 2]), torch.linspace(0.1, 2.0, 9)
    total, correct, grad = chunk_loss(
        draft.double(), target.double(), target_row, weight.double(), loss, needs_grad=True, tv=tv
    )
    ours = chunk_loss_triton(draft.clone(), target, target_row, weight, loss, needs_grad=True, tv=tv)
    assert float(ours[0]) == pytest.approx(float(total), rel=1e-5, abs=1e-5)
    assert ours[1].tolist() == correct.tolist()
    torch.testing.assert_close(ours[2].double(), grad, rtol=1e-5, atol=1e-6)
    untouched = draft.clone()
    assert chunk_loss_triton(untouched, target, target_row, weight, loss, needs_grad=False)[2] is None
    assert torch.equal(untouched, draft)


@interpreted
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_whole_loss_uses_it_and_agrees(loss, monkeypatch):
    from peagle_core.kernels import distillation

    calls = []
    monkeypatch.setattr(distillation, "distill", lambda *args, f=distillation.distill: (calls.append(1), f(*args))[1])
    hidden, head, states, rows = (torch.randn(*s, dtype=torch.float64) for s in [(20, 8), (33, 8), (10, 6), (33, 6)])
    index, weight = torch.randint(0, 10, (20,)), torch.rand(20, dtype=torch.float64)
    results = []
    for dtype in (torch.float64, torch.float32):
        inputs = [x.to(dtype).requires_grad_() for x in (hidden, head)]
        labels = Labels(states.to(dtype), rows.to(dtype), index)
        total, correct = distillation_loss(*inputs, labels, weight.to(dtype), loss, chunk_rows=7)
        results.append([total, correct, *torch.autograd.grad(2 * total, inputs)])
        assert len(calls) == (0 if dtype == torch.float64 else 3)
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours.to(exact.dtype), exact, rtol=2e-5, atol=2e-5)
