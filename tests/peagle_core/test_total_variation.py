"""A share of total variation in the loss, in every mode."""

from __future__ import annotations

import pytest
import torch
from layouts import stream
from steps import SMALL, assert_same, gradients, step
from tiny import random_batch, tiny_config, tiny_drafter

from peagle_core.cod import sample_elements
from peagle_core.draft_vocabulary import draft_vocab_ids
from peagle_core.errors import InputError
from peagle_core.told import ToldInTraining
from peagle_core.training import StepOptions, charged_elements, forward_elements

PACKED = ("uAAAAAAAAA", "uuAAAAAAA")
MODES = ({"mode": "flat"}, {"mode": "partition", "num_segments": 3}, {"mode": "stream", "chunk_rows": 9})


def problem(rank: int = 0):
    config = tiny_config(**SMALL, draft_vocab_size=20, correction_rank=rank)
    drafter = tiny_drafter(config, scale=1.5)
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    # A flat target, that the two overlap.
    batch.final_hidden.mul_(0.3)
    elements = sample_elements(*packed, 4, 0.8, generator=torch.Generator().manual_seed(0))
    return drafter, batch, elements[elements.argsort("anchor")], head


def reference(drafter, batch, elements, head, tv: float):
    """Loss and gradients from full logits, row by row."""
    drafter.zero_grad(set_to_none=True)
    charged = charged_elements(elements, batch, head, drafter.d2t)
    states = forward_elements(drafter, batch, elements, "dense")
    told = ToldInTraining(batch.input_ids, batch.doc_starts, drafter.config.vocab_size)(elements.anchor, elements.depth)
    logits = drafter.corrected_logits(drafter.norm(states), told)
    target_rows = head[draft_vocab_ids(drafter.d2t)]
    total = torch.zeros((), dtype=torch.float64)
    for row in charged.nonzero().squeeze(-1).tolist():
        q = logits[row].softmax(-1)
        p = (target_rows @ batch.final_hidden[int(elements.position[row]) + 1]).softmax(-1)
        total = total + (1 - tv) * (p * (p.log() - q.log())).sum() + tv * (1 - torch.minimum(p, q).sum())
    (total / charged.sum()).backward()
    return float(total.detach()), gradients(drafter)


@pytest.mark.parametrize("options", MODES, ids=lambda options: options["mode"])
@pytest.mark.parametrize("rank", [0, 3])
def test_every_mode_is_the_definition(options, rank):
    drafter, batch, elements, head = problem(rank)
    expected = reference(drafter, batch, elements, head, 0.4)
    assert_same(step(drafter, batch, elements, target_head=head, tv=0.4, **options), expected)


@pytest.mark.parametrize("mode", ["flat", "stream"])
def test_eagle3_has_it(mode):
    config = tiny_config(**(SMALL | {"mask_token_id": None}))
    drafter = tiny_drafter(config)
    packed = stream(*PACKED)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    plain, all_of_it, half = (
        step(drafter, batch, elements, target_head=head, mode=mode, tv=tv)[0] for tv in (0.0, 1.0, 0.5)
    )
    assert 0 < all_of_it < len(elements) and plain > 0
    assert half == pytest.approx((plain + all_of_it) / 2)


def test_bad_shares_are_refused():
    for wrong in (-0.1, 1.5):
        with pytest.raises(InputError, match="tv must be a share from 0 to 1"):
            StepOptions(tv=wrong)
