"""The fused chunked loss against torch's own kl_div and cross_entropy on full logits, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peagle_core.errors import InputError
from peagle_core.loss import Labels, distillation_loss


def full_logits_loss(
    hidden: Tensor, head: Tensor, labels: Labels, weight: Tensor, loss: str, tv: float = 0.0
) -> Tensor:
    """One row of logits per element for both models, then torch's own functions."""
    draft, target = hidden @ head.T, labels.states[labels.index] @ labels.target_rows.T
    if loss == "kl":
        rows = F.kl_div(draft.log_softmax(-1), target.softmax(-1), reduction="none").sum(-1)
    else:
        rows = F.cross_entropy(draft, target.argmax(-1), reduction="none")
    if tv:
        rows = (1 - tv) * rows + tv * (draft.softmax(-1) - target.softmax(-1)).abs().sum(-1) / 2
    return (rows * weight).sum()


def problem(rows: int, slots: int, vocab: int, seed: int, dtype: torch.dtype = torch.float64):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    hidden, head = normal(rows, 7).requires_grad_(), normal(vocab, 7).requires_grad_()
    index = torch.randint(0, slots, (rows,), generator=rng)
    weight = torch.rand(rows, generator=rng, dtype=torch.float64).to(dtype)
    return hidden, head, Labels(normal(slots, 5), normal(vocab, 5), index), weight


@given(
    st.sampled_from(["kl", "ce"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 30),
    st.integers(1, 12),
    st.integers(2, 17),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_loss_and_gradients_are_torchs_own(loss, tv, rows, slots, vocab, chunk_rows, seed):
    hidden, head, labels, weight = problem(rows, slots, vocab, seed)
    total, correct = distillation_loss(hidden, head, labels, weight, loss, chunk_rows, tv)
    expected = full_logits_loss(hidden, head, labels, weight, loss, tv)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    # An upstream factor other than 1, as the division by the denominator is.
    ours = torch.autograd.grad(total * 0.37, (hidden, head))
    theirs = torch.autograd.grad(expected * 0.37, (hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    top = (labels.states[labels.index] @ labels.target_rows.T).argmax(-1)
    assert correct.tolist() == ((hidden @ head.T).argmax(-1) == top).tolist()
    assert not correct.requires_grad


def test_a_perfect_draft_has_no_loss_and_no_gradient():
    states = torch.randn(6, 5, dtype=torch.float64)
    head = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    hidden = states.clone().requires_grad_()
    labels = Labels(states, head.detach(), torch.arange(6))
    total, correct = distillation_loss(hidden, head, labels, torch.ones(6, dtype=torch.float64))
    total.backward()
    assert abs(float(total.detach())) < 1e-12
    assert correct.all()
    assert hidden.grad.abs().max() < 1e-12
    assert head.grad.abs().max() < 1e-12


def test_only_what_needs_a_gradient_gets_one():
    hidden, head, labels, weight = problem(9, 4, 11, 0)
    frozen = head.detach()
    distillation_loss(hidden, frozen, labels, weight)[0].backward()
    expected = torch.autograd.grad(full_logits_loss(hidden, frozen, labels, weight, "kl"), hidden)[0]
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-10, atol=1e-10)
    assert frozen.grad is None
    with torch.no_grad():
        total, _ = distillation_loss(hidden, head, labels, weight)
    assert not total.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs_give_a_float32_loss_and_gradients_of_their_own_dtype(dtype):
    hidden, head, labels, weight = problem(16, 5, 12, 1, dtype)
    total, _ = distillation_loss(hidden, head, labels, weight, chunk_rows=5)
    total.backward()
    assert total.dtype == torch.float32
    assert (hidden.grad.dtype, head.grad.dtype) == (dtype, dtype)
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    wide = Labels(labels.states.double(), labels.target_rows.double(), labels.index)
    expected = full_logits_loss(*exact, wide, weight.double(), "kl")
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(total.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    expected.backward()
    for low, high in zip((hidden, head), exact, strict=True):
        assert (low.grad.double() - high.grad).norm() < tolerance * high.grad.norm()


def test_extreme_logits_stay_finite():
    hidden, head, labels, weight = problem(8, 4, 10, 2)
    labels = Labels(labels.states * 1e4, labels.target_rows, labels.index)
    for loss in ("kl", "ce"):
        total, _ = distillation_loss(1e4 * hidden, head, labels, weight, loss)
        gradients = torch.autograd.grad(total, (hidden, head))
        assert torch.isfinite(total)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_total_variation_alone_is_what_the_two_distributions_do_not_share():
    hidden, head, labels, _ = problem(16, 5, 12, 1)
    p, q = (labels.states[labels.index] @ labels.target_rows.T).softmax(-1), (hidden @ head.T).softmax(-1)
    total, _ = distillation_loss(hidden, head, labels, torch.ones(16, dtype=torch.float64), tv=1.0)
    torch.testing.assert_close(total, (1 - torch.minimum(p, q).sum(-1)).sum())


def test_an_unknown_loss_is_refused():
    with pytest.raises(InputError, match=r"unknown loss 'mse'; choose from kl, ce"):
        distillation_loss(*problem(2, 2, 3, 0), "mse")
