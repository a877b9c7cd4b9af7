"""Algorithm 1: the printed phases against the closed form, the paper's figure, and what a segment must contain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import streams

from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.paper.algorithm1 import assign_by_phases, visible_context
from peagle_core.partition import assign_segments, balanced_bounds, segment_bounds

# Figure 4 of the paper: positions kept at depths 0..3 of a sequence of 16, r = 0.7.
FIGURE_4 = [
    list(range(16)),
    [1, 3, 4, 6, 7, 9, 10, 12, 14, 15],
    [2, 5, 7, 8, 11, 13, 15],
    [3, 6, 9, 12, 14],
]


def figure_4() -> Elements:
    pairs = [(position - depth, depth) for depth, kept in enumerate(FIGURE_4) for position in kept]
    anchor, depth = torch.tensor(pairs).T
    return Elements(anchor, depth)


def test_figure_4():
    elements = figure_4()
    assert len(elements) == 38
    segment = assign_segments(elements, 16, 2)
    by_place = {
        (d, p): s for d, p, s in zip(elements.depth.tolist(), elements.position.tolist(), segment.tolist(), strict=True)
    }
    # Position 8 at depth 2 descends from 7 at depth 1: a split by index at 8 would orphan it.
    assert by_place[1, 7] == by_place[2, 8] == by_place[3, 9] == 0
    assert by_place[1, 9] == 1
    first = {d: [p for (depth, p), s in by_place.items() if depth == d and s == 0] for d in range(4)}
    assert first == {0: list(range(8)), 1: [1, 3, 4, 6, 7], 2: [2, 5, 7, 8], 3: [3, 6, 9]}
    context = visible_context(torch.arange(16), segment_bounds(16, 2))
    assert [c.tolist() for c in context] == [list(range(8)), list(range(16))]


def sample(packed, num_depths: int, retention: float, seed: int) -> Elements:
    return sample_elements(*packed, num_depths, retention, generator=torch.Generator().manual_seed(seed))


cods = st.tuples(st.integers(1, 8), st.sampled_from([0.3, 0.7, 1.0]), st.integers(0, 99))


@given(streams(max_size=40), cods, st.integers(1, 9))
def test_the_closed_form_is_the_printed_algorithm(packed, cod, num_segments):
    elements, length = sample(packed, *cod), len(packed[0])
    expected = assign_by_phases(elements, segment_bounds(length, num_segments))
    assert assign_segments(elements, length, num_segments).tolist() == expected.tolist()


@given(streams(max_size=40), cods, st.integers(1, 9), st.booleans())
def test_a_chain_lies_in_one_segment_and_sees_its_context(packed, cod, num_segments, balanced):
    elements, length = sample(packed, *cod), len(packed[0])
    segment = assign_segments(elements, length, num_segments, balanced)
    bounds = balanced_bounds(elements, length, num_segments) if balanced else segment_bounds(length, num_segments)
    assert ((segment >= 0) & (segment < num_segments)).all()
    chain_segment: dict[int, int] = {}
    for anchor, depth, s in zip(elements.anchor.tolist(), elements.depth.tolist(), segment.tolist(), strict=True):
        if depth:
            assert chain_segment.setdefault(anchor, s) == s
        assert anchor < bounds[s + 1], "every depth-0 key the row may see is in its segment's context"


@given(st.integers(0, 200), st.integers(1, 30))
def test_bounds_cover_the_row_once(length, num_segments):
    bounds = segment_bounds(length, num_segments)
    assert bounds[0] == 0
    assert bounds[-1] == length
    assert (bounds.diff() >= 0).all()
    assert bounds.diff().max() - bounds.diff().min() <= 1


def test_balanced_segments_hold_equal_counts_where_equal_lengths_do_not():
    # A long prompt (one element per slot) and an answer (eight): equal lengths put most elements in the last segment.
    loss_mask = torch.arange(400) >= 300
    elements = sample_elements(loss_mask, torch.zeros(400, dtype=torch.int64), 8, 1.0)

    def counts(balanced: bool) -> list[int]:
        return torch.bincount(assign_segments(elements, 400, 4, balanced), minlength=4).tolist()

    assert max(counts(False)) > 2 * len(elements) / 4
    assert max(counts(True)) - min(counts(True)) <= 16


def test_what_is_refused():
    elements = figure_4()
    for balanced in (False, True):
        with pytest.raises(InputError, match="num_segments must be at least 1, found 0"):
            assign_segments(elements, 16, 0, balanced)
    with pytest.raises(ValueError, match="position 15, beyond length 15"):
        assign_segments(elements, 15, 2)
