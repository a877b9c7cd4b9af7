"""Parity of training and serving: a depth-d prediction in training is row d of the reference loop at that anchor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import all_elements, stream
from tiny import VOCAB, random_batch, text_batch, tiny_config, tiny_drafter
from torch import Tensor
from transformers import PreTrainedModel
from variants import VARIANTS

from peagle_core import told
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.generate import DraftCache, draft_states, speculate
from peagle_core.target import target_head
from peagle_core.told import MATCHES
from peagle_core.training import Batch, forward_elements, loss_and_backward

K = 5


def training_logits(drafter: PEagleDrafter, batch: Batch, elements: Elements, attention: str = "torch") -> dict:
    """(a, d) -> logits of the flat forward."""
    elements = elements.order("anchor")
    with torch.no_grad():
        logits = drafter.logits(forward_elements(drafter, batch, elements, attention))
    pairs = zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True)
    return dict(zip(pairs, logits, strict=True))


def serving_states(drafter: PEagleDrafter, batch: Batch, start: int, stop: int, steps: list[int]) -> dict[int, Tensor]:
    """anchor -> [K, H] of the reference loop over tokens start..stop-1, fed steps[0], steps[1], ... real rows."""
    cache, seen, found = DraftCache(), 0, {}
    for count in steps:
        rows = slice(start + seen, start + seen + count)
        tokens = batch.input_ids[rows.start + 1 : rows.stop + 1]
        if rows.stop >= stop:
            break
        found[rows.stop - 1] = draft_states(drafter, cache, tokens, batch.aux[rows], K, seen)
        seen += count
    return found


def largest_difference(drafter: PEagleDrafter, batch: Batch, steps: list[int]) -> float:
    """Over every pair that both sides have, all documents of the batch."""
    trained = training_logits(drafter, batch, all_elements(batch.doc_ids, K))
    worst, compared = 0.0, 0
    for doc in batch.doc_ids.unique().tolist():
        where = (batch.doc_ids == doc).nonzero().squeeze(-1).tolist()
        start, stop = where[0], where[-1] + 1
        for anchor, states in serving_states(drafter, batch, start, stop, steps).items():
            logits = drafter.lm_head(states)
            for depth in range(K):
                if (anchor, depth) in trained:
                    worst = max(worst, float((trained[anchor, depth] - logits[depth]).abs().max()))
                    compared += 1
    assert compared
    return worst


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_flat_forward_is_the_reference_loop(name, dtype, tolerance):
    config = tiny_config(**VARIANTS[name])
    drafter = tiny_drafter(config, dtype=dtype, scale=1.5)
    packed = stream("uAAAAAAAAAAA", "uuAAAAAA")
    batch, _ = random_batch(config, *packed, dtype=dtype)
    assert largest_difference(drafter, batch, [1] * 12) < tolerance


@settings(max_examples=30)
@given(st.integers(1, 12), st.lists(st.integers(1, K + 1), min_size=1, max_size=10), st.integers(0, 99))
def test_whatever_was_accepted_before(prompt, accepted, seed):
    # The cache then holds rows that came in groups, with mask rows appended and dropped in between.
    config = tiny_config()
    batch, _ = random_batch(config, *stream("A" * 30), seed)
    assert largest_difference(tiny_drafter(config, seed), batch, [prompt, *accepted]) < 1e-9


def greedy_text(target: PreTrainedModel, prompt: Tensor, length: int) -> Tensor:
    return target.generate(prompt[None], do_sample=False, max_new_tokens=length)[0]


def half_trained(config: PEagleConfig, target: PreTrainedModel, batch: Batch) -> PEagleDrafter:
    """A drafter that is right now and then, for longer and shorter stretches."""
    drafter = tiny_drafter(config, scale=1.0)
    optimizer = torch.optim.Adam(drafter.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss_and_backward(drafter, batch, all_elements(batch.doc_ids, K), target_head=target_head(target))
        optimizer.step()
    return drafter


@pytest.mark.parametrize(("draft_vocab", "rank"), [(None, 0), (30, 0), (None, 6), (30, 6)])
def test_expected_accept_length_is_what_the_loop_accepts(tiny_target, draft_vocab, rank, monkeypatch):
    # The target's own greedy text, every anchor of it: the loop started there accepts exactly the drafts that the
    # metrics call correct chains, those whose label the draft vocabulary lacks included. But what a correction drafts
    # without a logit is in no metric of logits (it is in `standing_drafts`, see test_correction).
    monkeypatch.setattr(told, "SURE", MATCHES + 1)
    prompt, length = torch.randint(0, VOCAB, (6,)), 50
    ids = greedy_text(tiny_target, prompt, length)
    config = tiny_config(draft_vocab_size=draft_vocab, correction_rank=rank)
    batch = text_batch(tiny_target, config, ids, len(prompt))
    drafter = half_trained(config, tiny_target, batch)
    elements = all_elements(batch.doc_ids, K)
    with torch.no_grad():
        metrics = loss_and_backward(drafter, batch, elements, target_head=target_head(tiny_target))
    total, correct = [0] * K, [0] * K
    for anchor in range(len(prompt) - 1, len(ids) - 2):
        result = speculate(tiny_target, drafter, ids[: anchor + 1], K, 2)
        drafts, accepted = result.draft_tokens[0], result.accept_lengths[0] - 1
        for depth in range(min(K, len(ids) - anchor - 2)):
            total[depth] += 1
            correct[depth] += accepted > depth
            assert (drafts[: depth + 1] == ids[anchor + 2 : anchor + depth + 3].tolist()) == (accepted > depth)
    assert metrics.chain_total.tolist() == total
    assert metrics.chain_correct.tolist() == correct
    expected = 1 + sum(c / t for c, t in zip(correct, total, strict=True))
    assert metrics.expected_accept_length == pytest.approx(expected, rel=1e-6)
    assert 1.2 < expected < K + 0.8, "neither always wrong nor always right, or the test says little"
