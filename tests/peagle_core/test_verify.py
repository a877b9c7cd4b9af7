"""Chain verification: greedy against a loop, sampling against the target's distribution by chi-square."""

from __future__ import annotations

import pytest
import torch
from chisquare import p_value
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peagle_core.verify import verify_chain


@given(st.integers(0, 6), st.integers(2, 4), st.integers(0, 999))
def test_greedy_takes_the_longest_agreeing_prefix(num_drafts, vocab, seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_drafts + 1, vocab, generator=rng)
    drafts = torch.randint(0, vocab, (num_drafts,), generator=rng)
    choice = logits.argmax(-1).tolist()
    agreeing = 0
    for draft, best in zip(drafts.tolist(), choice, strict=False):
        if draft != best:
            break
        agreeing += 1
    assert verify_chain(drafts, logits) == (agreeing, choice[agreeing])


def emitted(drafts: Tensor, accepted: int, bonus: int) -> list[int]:
    return [*drafts[:accepted].tolist(), bonus]


@pytest.mark.parametrize("sampled_drafts", [False, True])
def test_sampling_emits_the_targets_distribution(sampled_drafts):
    # Drafts from q (or the fixed argmax of a wrong model), target p per position: every emitted token follows p there.
    vocab, num_drafts, temperature, runs = 5, 3, 0.7, 6000
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(num_drafts + 1, vocab, generator=rng)
    draft_probs = torch.randn(num_drafts, vocab, generator=rng).mul(1.5).softmax(-1)
    p = (logits.double() / temperature).softmax(-1)
    counts = torch.zeros(num_drafts + 1, vocab)
    second_given_first = torch.zeros(vocab, vocab)
    for _ in range(runs):
        if sampled_drafts:
            drafts = torch.multinomial(draft_probs, 1, generator=rng)[:, 0]
            result = verify_chain(drafts, logits, temperature, draft_probs, rng)
        else:
            drafts = draft_probs.argmax(-1)
            result = verify_chain(drafts, logits, temperature, generator=rng)
        tokens = emitted(drafts, *result)
        for position, token in enumerate(tokens):
            counts[position, token] += 1
        if len(tokens) > 1:
            second_given_first[tokens[0], tokens[1]] += 1
    for position in range(num_drafts + 1):
        assert counts[position].sum() > 50, "the chain must get that far for the test to say anything"
        assert p_value(counts[position], p[position]) > 1e-4
    # Whether a step went on must not depend on what the next token would have been.
    for first in second_given_first:
        if first.sum() > 100:
            assert p_value(first, p[1]) > 1e-4


def test_acceptance_is_the_overlap_of_the_two_distributions():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    rng = torch.Generator().manual_seed(1)
    logits = p.log()[None].repeat(2, 1)
    runs, accepted = 4000, 0
    for _ in range(runs):
        draft = torch.multinomial(q, 1, generator=rng)
        accepted += verify_chain(draft, logits, 1.0, q[None], rng)[0]
    overlap = float(torch.minimum(p, q).sum())
    assert p_value(torch.tensor([accepted, runs - accepted]), torch.tensor([overlap, 1 - overlap])) > 1e-4


def test_the_biased_rule_would_be_caught():
    # Guards the tests above: redrawing from p instead of max(p - q, 0) is the classic mistake.
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    rng = torch.Generator().manual_seed(2)
    counts = torch.zeros(3)
    for _ in range(3000):
        draft = int(torch.multinomial(q, 1, generator=rng))
        keep = torch.rand((), generator=rng) * q[draft] < p[draft]
        counts[draft if keep else int(torch.multinomial(p, 1, generator=rng))] += 1
    assert p_value(counts, p) < 1e-4


def test_impossible_drafts_fall_and_certain_ones_stand():
    never_1, only_1 = [0.0, -torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        assert verify_chain(torch.tensor([1, 1]), torch.tensor([never_1, only_1, only_1]), 1.0, generator=rng)[0] == 0
        accepted, bonus = verify_chain(torch.tensor([1]), torch.tensor([only_1, never_1]), 1.0, generator=rng)
        assert accepted == 1
        assert bonus in (0, 2)


def test_temperature_scales_the_logits_and_small_ones_approach_greedy():
    logits = torch.tensor([[1.0, 1.2, 0.0]])
    rng = torch.Generator().manual_seed(3)
    none = torch.zeros(0, dtype=torch.int64)
    counts = torch.bincount(
        torch.tensor([verify_chain(none, logits, 0.25, generator=rng)[1] for _ in range(2000)]), minlength=3
    )
    assert p_value(counts, (logits[0] / 0.25).softmax(-1)) > 1e-4
    assert {verify_chain(none, logits, 1e-3, generator=rng)[1] for _ in range(100)} == {1}


def test_one_row_of_logits_per_draft_and_one_more():
    with pytest.raises(ValueError, match="2 drafts need 3 rows"):
        verify_chain(torch.tensor([0, 1]), torch.zeros(2, 4))
