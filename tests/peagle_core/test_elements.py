"""Elements, slots and the supervised rule, against plain loops written from the sentence in docs/elements.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import stream, streams
from rules import is_supervised

from peagle_core.elements import PADDING_DOC, Elements, run_ends, slots, supervised


@given(streams())
def test_supervised_is_the_rule_for_every_anchor_and_depth(packed):
    loss_mask, doc_ids = packed
    n = len(doc_ids)
    pairs = [(a, d) for a in range(n) for d in range(n + 2)]
    elements = Elements(torch.tensor([a for a, _ in pairs]), torch.tensor([d for _, d in pairs]))
    expected = [is_supervised(a, d, loss_mask.tolist(), doc_ids.tolist()) for a, d in pairs]
    assert supervised(elements, loss_mask, doc_ids).tolist() == expected


def test_supervised_by_hand_on_one_answer():
    # Tokens 0..6, of which 2..5 are the answer. The first drafter pass of a server has anchor 1: its input is token 2.
    loss_mask, doc_ids = stream("uuAAAAu")
    charged = {(a, d) for a in range(7) for d in range(7) if is_supervised(a, d, loss_mask.tolist(), doc_ids.tolist())}
    assert charged == {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)}
    pairs = [*sorted(charged), (0, 0), (1, 3), (3, 1), (4, 0)]
    elements = Elements(*torch.tensor(pairs).T)
    assert supervised(elements, loss_mask, doc_ids).tolist() == [True] * 6 + [False] * 4


def test_the_first_token_of_a_document_can_be_no_input_but_its_state_can_be_read():
    loss_mask, doc_ids = stream("AAA", "AAA")
    elements = Elements(torch.tensor([0, 1, 2, 3, 4, 5]), torch.zeros(6, dtype=torch.int64))
    assert supervised(elements, loss_mask, doc_ids).tolist() == [True, False, False, True, False, False]


@given(streams())
def test_slots_are_pairs_of_neighbours_inside_one_document(packed):
    _, doc_ids = packed
    ids = doc_ids.tolist()
    assert slots(doc_ids).tolist() == [i for i in range(len(ids) - 1) if ids[i] == ids[i + 1] and ids[i] != PADDING_DOC]


def test_run_ends_stop_at_turns_documents_and_padding():
    loss_mask, doc_ids = stream("uAAuA", "AA", "..", "A")
    assert run_ends(loss_mask, doc_ids).tolist() == [0, 3, 3, 0, 5, 7, 7, 0, 0, 10]
    # A loss mask that is set on padding does not make padding generated.
    assert run_ends(torch.ones(4, dtype=torch.bool), torch.tensor([0, 0, -1, -1])).tolist() == [2, 2, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 7)), max_size=40))
def test_orders_are_sorted_permutations(pairs):
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    elements = Elements(table[:, 0], table[:, 1])
    by_anchor, by_depth = elements.order("anchor"), elements.order("depth")
    assert list(zip(by_anchor.anchor.tolist(), by_anchor.depth.tolist(), strict=True)) == sorted(pairs)
    assert list(zip(by_depth.depth.tolist(), by_depth.anchor.tolist(), strict=True)) == sorted((d, a) for a, d in pairs)
    assert elements.argsort("anchor").sort().values.tolist() == list(range(len(pairs)))
    assert len(by_depth) == len(pairs)
    assert elements.position.tolist() == [a + d for a, d in pairs]


def test_malformed_elements_are_refused():
    with pytest.raises(ValueError, match="equal 1-D"):
        Elements(torch.arange(3), torch.arange(2))
    with pytest.raises(ValueError, match="equal 1-D"):
        Elements(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="'anchor' or 'depth'"):
        Elements(torch.arange(3), torch.arange(3)).order("position")


@pytest.mark.parametrize("doc_ids", [[], [0], [-1], [0, 1, 2], [-1, -1]])
def test_streams_without_a_slot_have_none(doc_ids):
    ids = torch.tensor(doc_ids, dtype=torch.int64)
    assert len(slots(ids)) == 0
    nothing = Elements(slots(ids), slots(ids))
    assert supervised(nothing, torch.ones(len(ids), dtype=torch.bool), ids).shape == (0,)
