"""Row layout after verification and after prefill, against loops written from the description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sglang")

from sglang_backend.draft_inputs import rows_after_prefill, rows_after_verify

MASK = 999


@given(st.integers(1, 6), st.data())
def test_rows_after_verify(k, data):
    accept = data.draw(st.lists(st.integers(1, k + 1), min_size=1, max_size=4))
    bs = len(accept)
    chosen = torch.arange(bs * (k + 1)) + 10
    rows = rows_after_verify(chosen, torch.tensor(accept), k, MASK)
    for i, a in enumerate(accept):
        base = i * 2 * k
        for r in range(2 * k):
            real, valid = r < a, r < a + k - 1
            assert rows.valid[base + r] == valid
            assert rows.input_ids[base + r] == (chosen[i * (k + 1) + r] if real else MASK)
            assert rows.source[base + r] == (i * (k + 1) + r if real else bs * (k + 1))
        assert rows.select_index[i * k : (i + 1) * k].tolist() == [base + a - 1 + j for j in range(k)]


@given(st.integers(1, 5), st.data())
def test_rows_after_prefill(k, data):
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    masks = [data.draw(st.sampled_from([0, k - 1])) for _ in lengths]
    ids = torch.arange(sum(lengths)) + 100
    tail = torch.arange(len(lengths)) + 500
    rows = rows_after_prefill(ids, tail, lengths, masks, k, MASK)
    expected_ids, expected_source, expected_select, start = [], [], [], 0
    for i, (n, m) in enumerate(zip(lengths, masks, strict=True)):
        expected_ids += [*ids[start + 1 : start + n].tolist(), int(tail[i]), *[MASK] * m]
        expected_source += [*range(start, start + n), *[sum(lengths)] * m]
        last = len(expected_ids) - m - 1
        expected_select += [last + min(j, m) for j in range(k)]
        start += n
    assert rows.input_ids.tolist() == expected_ids
    assert rows.source.tolist() == expected_source
    assert rows.select_index.tolist() == expected_select
