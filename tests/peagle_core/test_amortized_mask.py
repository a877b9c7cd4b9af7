"""The mask built once: its corners and selections equal the mask built for the occasion."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import all_elements, streams

from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.mask import AmortizedMask, dense_mask


def grid(length: int, num_depths: int) -> Elements:
    """All pairs (a, d), anchor-major."""
    pairs = torch.cartesian_prod(torch.arange(length), torch.arange(num_depths))
    return Elements(pairs[:, 0], pairs[:, 1])


@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_every_corner_is_the_mask_of_a_shorter_document(max_length, num_depths, data):
    mask = AmortizedMask(max_length, num_depths)
    length = data.draw(st.integers(1, max_length))
    expected = dense_mask(grid(length, num_depths), torch.zeros(length, dtype=torch.int64))
    assert torch.equal(mask.slice(length), expected)


def test_a_corner_is_a_view():
    mask = AmortizedMask(32, 4)
    for length in (0, 1, 17, 32):
        assert mask.slice(length).untyped_storage().data_ptr() == mask.full.untyped_storage().data_ptr()
    assert mask.full.numel() == (32 * 4) ** 2, "one byte per pair of pairs, as the docstring says"


@given(streams(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_selection_is_the_mask_of_the_sample(packed, num_depths, random):
    everything = all_elements(packed[1], num_depths)
    rows = list(range(len(everything)))
    random.shuffle(rows)
    elements = everything[torch.tensor(rows[: len(rows) // 2 + 1], dtype=torch.int64)]
    mask = AmortizedMask(60, num_depths)
    assert torch.equal(mask.select(elements, packed[1]), dense_mask(elements, packed[1]))


def test_selection_with_padding():
    doc_ids = torch.tensor([0, 0, 0, -1, -1])
    elements = Elements(torch.arange(5), torch.zeros(5, dtype=torch.int64))
    assert torch.equal(AmortizedMask(5, 2).select(elements, doc_ids), dense_mask(elements, doc_ids))


def test_beyond_what_was_built():
    mask = AmortizedMask(8, 2)
    with pytest.raises(ValueError, match="length 9 is outside"):
        mask.slice(9)
    loss_mask, doc_ids = torch.ones(20, dtype=torch.bool), torch.zeros(20, dtype=torch.int64)
    with pytest.raises(ValueError, match="outside the 8 slots and 2 depths"):
        mask.select(sample_elements(loss_mask, doc_ids, 2, 1.0), doc_ids)
