"""COD sampling: how many elements, which ones are allowed, and that the draw is uniform."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import stream, streams
from rules import is_supervised

from peagle_core.cod import sample_elements
from peagle_core.elements import Elements, slots
from peagle_core.errors import InputError


def by_depth(elements: Elements) -> dict[int, list[int]]:
    depths = elements.depth.tolist()
    return {d: elements.anchor[elements.depth == d].tolist() for d in sorted(set(depths))}


retentions = st.sampled_from([0.3, 0.5, 0.7, 0.8, 1.0])


@given(
    streams(max_documents=5, max_size=24),
    st.integers(1, 9),
    retentions,
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 99),
)
def test_every_kept_element_is_allowed(packed, num_depths, retention, retention_min, seed):
    loss_mask, doc_ids = packed
    mask, ids = loss_mask.tolist(), doc_ids.tolist()
    rng = torch.Generator().manual_seed(seed)
    elements = sample_elements(loss_mask, doc_ids, num_depths, retention, min(retention, retention_min), rng)
    kept = by_depth(elements)
    assert kept.get(0, []) == slots(doc_ids).tolist(), "depth 0 keeps every slot"
    assert max(kept, default=0) < num_depths
    for depth, anchors in kept.items():
        assert anchors == sorted(set(anchors))
        assert min(anchors) >= 0
        if depth == 0:
            continue
        assert set(anchors) <= set(kept[depth - 1]), "a kept (a,d) has its whole chain"
        # Its label and everything between are generated tokens of the anchor's own document and turn.
        assert all(is_supervised(a, depth, mask, ids) for a in anchors)


@given(
    streams(max_documents=5, max_size=24),
    st.integers(1, 9),
    retentions,
    st.sampled_from([0.0, 0.2]),
    st.integers(0, 99),
)
def test_counts_follow_the_schedule_while_the_pool_lasts(packed, num_depths, retention, retention_min, seed):
    loss_mask, doc_ids = packed
    mask, ids = loss_mask.tolist(), doc_ids.tolist()
    retention_min = min(retention, retention_min)
    rng = torch.Generator().manual_seed(seed)
    kept = by_depth(sample_elements(loss_mask, doc_ids, num_depths, retention, retention_min, rng))
    supervised_slots = [a for a in slots(doc_ids).tolist() if is_supervised(a, 0, mask, ids)]
    previous = supervised_slots
    for depth in range(1, num_depths):
        pool = [a for a in previous if is_supervised(a, depth, mask, ids)]
        wanted = math.floor((len(supervised_slots) - depth) * max(retention**depth, retention_min))
        previous = kept.get(depth, [])
        assert len(previous) == max(0, min(wanted, len(pool)))


def test_counts_on_one_long_document():
    # 1002 generated tokens after one prompt token: V = 1001 supervised slots, and the pool never runs dry.
    loss_mask, doc_ids = stream("u" + "A" * 1002)
    kept = by_depth(sample_elements(loss_mask, doc_ids, 8, 0.8))
    assert [len(kept[d]) for d in range(8)] == [1002, 800, 639, 510, 408, 326, 260, 208]
    kept = by_depth(sample_elements(loss_mask, doc_ids, 8, 0.7, 0.2))
    assert len(kept[7]) == math.floor(994 * 0.2)


def test_fully_supervised_packed_text_has_no_negative_anchor_and_crosses_no_border():
    loss_mask, doc_ids = stream("A" * 9, "A" * 2, "A", "A" * 30, "....")
    elements = sample_elements(loss_mask, doc_ids, 6, 1.0)
    assert int(elements.anchor.min()) == 0
    label = elements.position + 2
    chained = elements.depth > 0
    assert torch.equal(doc_ids[label[chained]], doc_ids[elements.anchor[chained]])
    # With r = 1 every supervised pair is there; documents of 9, 2, 1 and 30 tokens give 7 + 28 anchors at depth 0.
    assert len(by_depth(elements)[1]) == 6 + 27


def test_a_chain_stays_in_its_turn():
    loss_mask, doc_ids = stream("uAAAuAAAAu")
    elements = sample_elements(loss_mask, doc_ids, 5, 1.0)
    assert {d: a for d, a in by_depth(elements).items() if d} == {1: [0, 4, 5], 2: [4]}


def test_the_generator_decides_alone():
    loss_mask, doc_ids = stream("u" + "A" * 60, "A" * 40)

    def draw(seed: int) -> list[tuple[int, int]]:
        torch.rand(1)  # the global generator moves on and must not matter
        elements = sample_elements(loss_mask, doc_ids, 5, 0.7, generator=torch.Generator().manual_seed(seed))
        return list(zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_anchors_are_drawn_uniformly(depth):
    # One document: by symmetry every anchor that can reach `depth` is kept equally often.
    loss_mask, doc_ids = stream("u" + "A" * 22)
    rng = torch.Generator().manual_seed(1)
    draws, counts = 1500, torch.zeros(23)
    for _ in range(draws):
        elements = sample_elements(loss_mask, doc_ids, depth + 1, 0.6, generator=rng)
        counts[elements.anchor[elements.depth == depth]] += 1
    candidates = 21 - depth
    assert counts[candidates:].sum() == 0
    counts = counts[:candidates]
    p = counts.sum() / draws / candidates
    assert 0.1 < p < 0.9
    # Sampling without replacement: this statistic is chi-square with candidates - 1 degrees of freedom.
    statistic = ((counts - draws * p) ** 2).sum() / (draws * p * (1 - p)) * (candidates - 1) / candidates
    freedom = candidates - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.8, 0.0), "num_depths"),
        ((4, 0.0, 0.0), "retention r"),
        ((4, 1.2, 0.0), "retention r"),
        ((4, 0.8, 0.9), "retention_min"),
        ((4, 0.8, -0.1), "retention_min"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    loss_mask, doc_ids = stream("AAAA")
    with pytest.raises(InputError, match=message):
        sample_elements(loss_mask, doc_ids, *arguments)


@pytest.mark.parametrize("documents", [("A",), ("u",), ("..",), ("A", "A"), ("uu",), ("AA",)])
def test_streams_with_nothing_to_draw(documents):
    loss_mask, doc_ids = stream(*documents)
    elements = sample_elements(loss_mask, doc_ids, 4, 0.8)
    assert elements.anchor.tolist() == slots(doc_ids).tolist()
    assert elements.depth.sum() == 0
