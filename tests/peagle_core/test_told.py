"""What a row is told of the text: in training and while drafting the same, and never what lies ahead."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from peagle_core import told
from peagle_core.told import NONE, RECENT, ToldInTraining, found_in, told_of_chain


def by_hand(text: list[int], chain: list[int], reach: int) -> list[int]:
    """Of the last row of a chain, from the definition."""
    recent = (chain[::-1] + [NONE] * RECENT)[:RECENT]
    before, token = (text[:-1] + chain)[-2:]
    oldest = max(1, len(text) - reach)  # a server's drafter never reads the first token
    places = [i for i in range(oldest, len(text) - 2) if text[i : i + 2] == [before, token]]
    known = len(text) + len(chain) > 3  # two tokens that are not the first
    return [*recent, text[places[-1] + 2] if places and known else NONE]


texts = st.lists(st.integers(0, 3), min_size=2, max_size=40)


@given(st.lists(texts, min_size=1, max_size=3), st.integers(3, 50))
def test_training_and_drafting_are_told_the_same(documents, reach):
    ids = torch.tensor([token for document in documents for token in document])
    starts = torch.cat([torch.full((len(d),), sum(map(len, documents[:i]))) for i, d in enumerate(documents)])
    told.REACH, kept = reach, told.REACH
    try:
        training, start = ToldInTraining(ids, starts, 4), 0
        for document in documents:
            for anchor in range(len(document) - 1):
                text, rest = document[: anchor + 2], document[anchor + 2 :]
                chain = torch.tensor([text[-1], *rest])[:5]
                drafting = told_of_chain(torch.tensor(text), chain)
                for depth in range(len(chain)):
                    (found,) = training(torch.tensor([start + anchor]), torch.tensor([depth])).tolist()
                    assert found == drafting[depth].tolist()
                    assert found == by_hand(text, chain[: depth + 1].tolist(), reach)
            start += len(document)
    finally:
        told.REACH = kept


def test_what_followed_the_last_time():
    text = torch.tensor([[NONE, 1, 2, 3, 1, 2, 4, 1, 2], [5, 6, 7, 8, 9, 1, 2, 3, 4]])
    assert found_in(text, torch.tensor([1, 3]), torch.tensor([2, 4])).tolist() == [4, NONE]
    assert found_in(text, torch.tensor([2, 6]), torch.tensor([3, 7])).tolist() == [1, 8]
    assert found_in(text, torch.tensor([NONE, NONE]), torch.tensor([1, 5])).tolist() == [NONE, NONE]
