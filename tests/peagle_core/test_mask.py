"""The mask rule: against a twin written from its sentence, and on the drafter itself by perturbation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import all_elements, chains, stream, streams
from rules import sees
from tiny import random_batch, tiny_config, tiny_drafter

from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.mask import dense_mask
from peagle_core.training import forward_elements


def pairs(elements: Elements) -> list[tuple[int, int]]:
    return list(zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True))


@given(streams(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_dense_mask_is_the_rule_in_any_order(packed, num_depths, random):
    _, doc_ids = packed
    everything = all_elements(doc_ids, num_depths)
    rows = list(range(len(everything)))
    random.shuffle(rows)
    elements = everything[torch.tensor(rows[: len(rows) // 2 + 1], dtype=torch.int64)]
    table, ids = pairs(elements), doc_ids.tolist()
    expected = [[sees(q, k, ids) for k in table] for q in table]
    assert dense_mask(elements, doc_ids).tolist() == expected


def test_mask_by_hand():
    # Slots 0, 1 of one document and 3 of another; a chain of depth 2 at slot 0 and of depth 1 at slot 1.
    _, doc_ids = stream("AAA", "AA")
    elements = Elements(torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 1, 2, 0, 1, 0]))
    drawing = """
        x.....
        xx....
        xxx...
        x..x..
        x..xx.
        .....x
    """
    expected = [[letter == "x" for letter in line] for line in drawing.split()]
    assert dense_mask(elements, doc_ids).tolist() == expected


def test_every_row_sees_itself_and_padding_sees_nothing():
    _, doc_ids = stream("AAAA", "..", "AAA")
    elements = Elements(torch.arange(len(doc_ids)), torch.zeros(len(doc_ids), dtype=torch.int64))
    mask = dense_mask(elements, doc_ids)
    assert torch.equal(mask.diagonal(), doc_ids >= 0)
    assert not mask[doc_ids < 0].any()
    assert not mask[:, doc_ids < 0].any()


@pytest.mark.parametrize("attention", ["dense", "torch"])
@settings(max_examples=25)
@given(packed=streams(max_documents=3, max_size=9), data=st.data())
def test_a_token_moves_exactly_the_rows_that_may_see_it(attention, packed, data):
    loss_mask, doc_ids = packed
    config = tiny_config(num_attention_heads=2, num_key_value_heads=1, hidden_size=8, target_hidden_size=8)
    drafter = tiny_drafter(config)
    batch, _ = random_batch(config, loss_mask, doc_ids)
    elements = chains(doc_ids, data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    assume(len(elements))
    anchor, doc = elements.anchor, doc_ids[elements.anchor]
    with torch.no_grad():
        before = forward_elements(drafter, batch, elements, attention)
        for j in range(len(doc_ids)):
            # x_j is the input of slot j-1, its state the state of slot j; both are read at depth 0 only.
            token, state = batch.input_ids.clone(), batch.aux.clone()
            token[j] = (token[j] + 1) % config.vocab_size
            state[j] += 1.0
            is_input = j > 0 and doc_ids[j - 1] == doc_ids[j]
            may_see_token = (doc == doc_ids[j]) & (anchor >= j - 1) if is_input else torch.zeros_like(doc, dtype=bool)
            may_see_state = (doc == doc_ids[j]) & (anchor >= j)
            for change, may_see in (({"input_ids": token}, may_see_token), ({"aux": state}, may_see_state)):
                fields = {**vars(batch), **change}
                moved = (forward_elements(drafter, type(batch)(**fields), elements, attention) - before).abs()
                assert moved[~may_see].sum() == 0
                assert (moved[may_see].amax(-1) > 0).all()


def test_a_chain_never_moves_another_row():
    # Dropping every chain but one leaves that chain and the depth-0 rows where they were.
    loss_mask, doc_ids = stream("u" + "A" * 9, "A" * 5)
    config = tiny_config()
    drafter, (batch, _) = tiny_drafter(config), random_batch(config, loss_mask, doc_ids)
    elements = sample_elements(loss_mask, doc_ids, 4, 1.0).order("anchor")
    with torch.no_grad():
        full = forward_elements(drafter, batch, elements)
        for anchor in elements.anchor.unique().tolist():
            rows = (elements.depth == 0) | (elements.anchor == anchor)
            torch.testing.assert_close(forward_elements(drafter, batch, elements[rows]), full[rows], rtol=0, atol=1e-12)
