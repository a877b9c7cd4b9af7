"""Draft ids and target ids, in the three forms that files and engines know."""

from __future__ import annotations

import torch

from peagle_core.draft_vocabulary import draft_vocab_ids, membership, offsets


def test_the_three_forms_say_the_same():
    ids = torch.tensor([0, 3, 4, 9])
    assert offsets(ids).tolist() == [0, 2, 2, 6]
    assert torch.equal(draft_vocab_ids(offsets(ids)), ids)
    assert membership(ids, 11).nonzero().flatten().tolist() == ids.tolist()
    assert len(membership(ids, 11)) == 11
