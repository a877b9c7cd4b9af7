"""Losses that aim at acceptance, in every mode: total variation, and weights by whether a draft is looked at at all."""

from __future__ import annotations

import pytest
import torch
from layouts import stream
from steps import SMALL, assert_same, gradients, step
from tiny import random_batch, tiny_config, tiny_drafter

from peagle_core.cod import sample_elements
from peagle_core.draft_vocabulary import draft_vocab_ids
from peagle_core.errors import InputError
from peagle_core.training import StepOptions, charged_elements, forward_elements

PACKED = ("uAAAAAAAAA", "uuAAAAAAA")
MODES = ({"mode": "flat"}, {"mode": "partition", "num_segments": 3}, {"mode": "stream", "chunk_rows": 9})


def problem(rank: int = 0):
    config = tiny_config(**SMALL, draft_vocab_size=20, correction_rank=rank)
    drafter = tiny_drafter(config, scale=1.5)
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    # Near the target, or nothing would ever stand.
    batch.final_hidden.mul_(0.3)
    elements = sample_elements(*packed, 4, 0.8, generator=torch.Generator().manual_seed(0))
    return drafter, batch, elements[elements.argsort("anchor")], head


def reference(drafter, batch, elements, head, tv: float, chain_weights: bool):
    """Loss and gradients from full logits, chain by chain."""
    drafter.zero_grad(set_to_none=True)
    charged = charged_elements(elements, batch, head, drafter.d2t)
    states = forward_elements(drafter, batch, elements, "dense")
    logits = drafter.corrected(drafter.logits(states), batch.input_ids[elements.position + 1])
    target_rows = head[draft_vocab_ids(drafter.d2t)]
    total, reached, discounted = torch.zeros((), dtype=torch.float64), 1.0, 0
    for row, (position, depth) in enumerate(zip(elements.position.tolist(), elements.depth.tolist(), strict=True)):
        reached = 1.0 if depth == 0 else reached
        q = logits[row].softmax(-1)
        if not charged[row]:
            reached = 0.0  # no draft can stand here
            continue
        p = (target_rows @ batch.final_hidden[position + 1]).softmax(-1)
        loss = (1 - tv) * (p * (p.log() - q.log())).sum() + tv * (1 - torch.minimum(p, q).sum())
        total = total + (reached if chain_weights else 1.0) * loss
        discounted += depth > 0 and 0.0 < reached < 1.0
        reached *= float(torch.minimum(p, q).sum().detach())
    assert discounted > 5
    (total / charged.sum()).backward()
    return float(total.detach()), gradients(drafter)


@pytest.mark.parametrize("options", MODES, ids=lambda options: options["mode"])
@pytest.mark.parametrize(("tv", "chain_weights"), [(0.4, False), (0.0, True), (0.4, True)])
def test_every_mode_is_the_definition(options, tv, chain_weights):
    drafter, batch, elements, head = problem(rank=3 if tv else 0)
    expected = reference(drafter, batch, elements, head, tv, chain_weights)
    assert_same(
        step(drafter, batch, elements, target_head=head, tv=tv, chain_weights=chain_weights, **options), expected
    )


@pytest.mark.parametrize("mode", ["flat", "stream"])
def test_eagle3_has_both(mode):
    config = tiny_config(**(SMALL | {"mask_token_id": None}))
    drafter = tiny_drafter(config)
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    batch.final_hidden.mul_(0.3)
    elements = sample_elements(*packed, 3, 1.0)
    plain = step(drafter, batch, elements, target_head=head, mode=mode)[0]
    weighted = step(drafter, batch, elements, target_head=head, mode=mode, chain_weights=True)
    flat = step(drafter, batch, elements, target_head=head, mode="flat", chain_weights=True)
    assert 0 < weighted[0] < plain
    assert_same(weighted, flat)


def test_bad_shares_are_refused():
    for wrong in (-0.1, 1.5):
        with pytest.raises(InputError, match="tv must be a share from 0 to 1"):
            StepOptions(tv=wrong)
