"""Chain counts on layouts small enough to count by hand; that they predict real acceptance is in test_parity.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import chains, stream

from peagle_core.elements import Elements
from peagle_core.metrics import DraftMetrics, measure


def flags(text: str) -> torch.Tensor:
    return torch.tensor([letter == "x" for letter in text.replace(" ", "")])


def count(elements: Elements, supervised: str, charged: str, right: str) -> DraftMetrics:
    """right: one letter per row; only the charged ones are handed over, as the loss does."""
    is_charged = flags(charged)
    return measure(elements, flags(supervised), is_charged, flags(right)[is_charged], torch.tensor(3.0))


def test_counts_by_hand():
    # Four anchors with chains of 3, 1, 2 and 3 rows, written anchor by anchor.
    elements = chains(stream("A" * 5)[1], [3, 1, 2, 3])
    metrics = count(
        elements,
        supervised="xxx x xx xxx",
        charged="   xxx x xx xxx",
        right="     xx. x .x xxx",
    )
    assert metrics.total.tolist() == [4, 3, 2]
    assert metrics.correct.tolist() == [3, 3, 1]
    assert metrics.chain_total.tolist() == [4, 3, 2]
    # The third anchor's second draft is right but useless: its first one was refused.
    assert metrics.chain_correct.tolist() == [3, 2, 1]
    assert metrics.accuracy == pytest.approx([3 / 4, 1.0, 1 / 2])
    assert metrics.expected_accept_length == pytest.approx(1 + 3 / 4 + 2 / 3 + 1 / 2)
    assert metrics.loss == pytest.approx(3.0 / 9)


def test_a_label_outside_the_draft_vocabulary_ends_the_chain_as_a_miss():
    elements = chains(stream("A" * 3)[1], [3])
    metrics = count(elements, supervised="xxx xxx", charged="x.x .xx", right="xxx xxx")
    assert metrics.total.tolist() == [1, 1, 2]
    assert metrics.correct.tolist() == [1, 1, 2]
    assert metrics.chain_total.tolist() == [2, 2, 2]
    assert metrics.chain_correct.tolist() == [1, 0, 0]
    assert metrics.expected_accept_length == pytest.approx(1.5)


def test_unsupervised_rows_count_nowhere():
    # Prompt rows are context; the end of the answer cuts the chains.
    elements = chains(stream("A" * 4)[1], [1, 3, 2])
    metrics = count(elements, supervised=". xx. x.", charged=". xx. x.", right="x xxx xx")
    assert metrics.total.tolist() == [2, 1, 0]
    assert metrics.chain_total.tolist() == [2, 1, 0]
    assert metrics.chain_correct.tolist() == [2, 1, 0]
    assert metrics.expected_accept_length == 3.0


def test_no_elements_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    metrics = measure(Elements(nothing, nothing), nothing.bool(), nothing.bool(), nothing.bool(), torch.tensor(0.0))
    assert metrics.loss == 0.0
    assert metrics.expected_accept_length == 1.0


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2**15 - 1)), min_size=1, max_size=8))
def test_chain_counts_are_a_loop_over_chains(plan):
    # Each anchor: the length of its chain, and random bits (supervised, charged, right) for its rows.
    lengths = [length for length, _ in plan]
    elements = chains(stream("A" * (len(plan) + 1))[1], lengths)
    bits = [[(seed >> (3 * d)) & 7 for d in range(length)] for length, seed in plan]
    supervised = [[bool(b & 1) for b in row] for row in bits]
    charged = [[s and bool(b & 2) for s, b in zip(*rows, strict=True)] for rows in zip(supervised, bits, strict=True)]
    right = [[c and bool(b & 4) for c, b in zip(*rows, strict=True)] for rows in zip(charged, bits, strict=True)]
    flat = [torch.tensor([flag for row in rows for flag in row]) for rows in (supervised, charged, right)]
    metrics = measure(elements, flat[0], flat[1], flat[2][flat[1]], torch.tensor(0.0))
    for depth in range(max(lengths)):
        long_enough = [i for i, length in enumerate(lengths) if length > depth]
        assert metrics.total[depth] == sum(charged[i][depth] for i in long_enough)
        assert metrics.correct[depth] == sum(right[i][depth] for i in long_enough)
        assert metrics.chain_total[depth] == sum(all(supervised[i][: depth + 1]) for i in long_enough)
        assert metrics.chain_correct[depth] == sum(all(right[i][: depth + 1]) for i in long_enough)


def test_batches_add_up_also_when_one_is_shallower():
    deep = count(chains(stream("A" * 3)[1], [3]), "xxx xxx", "xxx xxx", "xx. xxx")
    shallow = count(chains(stream("A" * 4)[1], [1]), "x x x", "x x .", "x . .")
    for total in (deep + shallow, shallow + deep):
        assert total.total.tolist() == [4, 2, 2]
        assert total.correct.tolist() == [3, 2, 1]
        assert total.chain_total.tolist() == [5, 2, 2]
        assert total.chain_correct.tolist() == [3, 2, 1]
        assert float(total.loss_sum) == 6.0
