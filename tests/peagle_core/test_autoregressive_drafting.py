"""EAGLE-3 drafting in the reference loop: lossless, K=1 is P-EAGLE's, and it is what training-time test trains."""

from __future__ import annotations

import pytest
import torch
from eagle3 import overfit_eagle3
from tiny import VOCAB, text_batch, tiny_config, tiny_drafter

from peagle_core.generate import DraftCache, draft_autoregressively, speculate
from peagle_core.target import target_head


@pytest.mark.parametrize("draft_vocab", [None, 30])
def test_output_is_the_targets_own(tiny_target, draft_vocab):
    prompt = torch.randint(0, VOCAB, (7,))
    expected = tiny_target.generate(prompt[None], do_sample=False, max_new_tokens=30)[0, 7:].tolist()
    drafter = tiny_drafter(tiny_config(draft_vocab_size=draft_vocab))
    assert speculate(tiny_target, drafter, prompt, 4, 30, autoregressive=True).output_ids == expected
    one = [
        speculate(tiny_target, drafter, prompt, 1, 30, autoregressive=autoregressive)
        for autoregressive in (True, False)
    ]
    assert one[0] == one[1]


def test_rows_of_drafts_are_forgotten():
    drafter, tokens = tiny_drafter(), torch.randint(0, VOCAB, (9,))
    aux = torch.randn(9, drafter.config.fused_size, dtype=torch.float64)
    cache = DraftCache()
    draft_autoregressively(drafter, cache, tokens[:4], aux[:4], 3, 0)
    in_two = draft_autoregressively(drafter, cache, tokens[4:], aux[4:], 3, 4)
    assert torch.equal(in_two, draft_autoregressively(drafter, DraftCache(), tokens, aux, 3, 0))


def test_what_was_trained_is_accepted(tiny_target):
    prompt, num_drafts = torch.randint(0, VOCAB, (6,)), 4
    ids = tiny_target.generate(prompt[None], do_sample=False, max_new_tokens=41)[0]
    config = tiny_config(num_hidden_layers=1, mask_token_id=None)
    drafter = tiny_drafter(config, scale=1.0)
    batch = text_batch(tiny_target, config, ids, len(prompt))
    overfit_eagle3(drafter, [batch], target_head(tiny_target), num_drafts, steps=100, lr=1e-2)
    result = speculate(tiny_target, drafter, prompt, num_drafts, 36)
    assert result.mean_accept_length > 0.9 * (num_drafts + 1)
