"""What a row is told of the text: in training and while drafting the same, and never what lies ahead."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from peagle_core import told
from peagle_core.told import LONGEST, MATCHES, NONE, RECENT, Matches, ToldInTraining, outright, told_of_chain


def by_hand(text: list[int], chain: list[int], reach: int) -> list[int]:
    """Of the last row of a chain, from the definition."""
    recent = (chain[::-1] + [NONE] * RECENT)[:RECENT]
    text = text[1:][-reach:]  # a server's drafter never reads the first token
    whole = (text[:-1] + chain)[-len(chain) :] if not text else text + chain[1:]
    for match in range(MATCHES, 0, -1):
        length = 2 ** (match - 1)
        ends = [i for i in range(length, len(text)) if length <= len(whole) and text[i - length : i] == whole[-length:]]
        if ends:
            return [*recent, text[ends[-1]], match]
    return [*recent, NONE, 0]


texts = st.one_of(
    st.lists(st.integers(0, 3), min_size=2, max_size=40),
    # Runs that come again, up to longer than the longest match
    st.builds(
        lambda run, gap, times: (run + gap) * times,
        st.lists(st.integers(0, 3), min_size=2, max_size=LONGEST + 5), st.lists(st.integers(0, 3), max_size=2),
        st.integers(2, 3),
    ),
)  # fmt: skip


@given(st.lists(texts, min_size=1, max_size=3), st.integers(LONGEST, 60))
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
    matches = Matches(torch.tensor([[NONE, 1, 2, 3, 1, 2, 4, 1, 2], [5, 6, 7, 8, 9, 1, 2, 3, 4]]))
    assert [t.tolist() for t in matches.best()] == [[4, NONE], [2, 0]]
    matches.follow(torch.tensor([3, 8]))  # 1 2 3 | 8
    assert [t.tolist() for t in matches.best()] == [[1, 9], [2, 1]]
    matches.follow(torch.tensor([1, 9]))  # 1 2 3 1 | 8 9
    assert [t.tolist() for t in matches.best()] == [[2, 1], [3, 2]]
    matches.follow(torch.tensor([9, 2]))
    assert [t.tolist() for t in matches.best()] == [[NONE, 3], [0, 1]]


def test_the_longer_match_wins_and_among_equals_the_later():
    a, b, c, x, y = 1, 2, 3, 8, 9
    assert [int(t) for t in Matches(torch.tensor([[a, b, c, x, c, y, a, b, c]])).best()] == [
        x,
        2,
    ]  # 3 tokens: at least 2
    assert [int(t) for t in Matches(torch.tensor([[b, c, x, b, c, y, a, b, c]])).best()] == [y, 2]


def test_what_is_drafted_outright():
    """Found behind two tokens or more, and without a logit."""
    found, match = torch.tensor([7, 7, 7, NONE, 7]), torch.tensor([2, 5, 1, 0, 6])
    draft_id = torch.tensor([NONE, NONE, NONE, NONE, 3])
    assert outright(found, match, draft_id).tolist() == [True, True, False, False, False]
