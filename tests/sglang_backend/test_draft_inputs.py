"""Row layout after verification and after prefill, against loops written from the description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sglang")

from sglang_backend.draft_inputs import (
    MASK_ROW,
    PADDING_KV_SLOT,
    DecodeRows,
    rows_after_prefill,
    rows_after_verify,
)

MASK = 999


@given(st.integers(1, 6), st.data())
def test_rows_after_verify(k, data):
    accept = data.draw(st.lists(st.integers(1, k + 1), min_size=1, max_size=4))
    bs, width = len(accept), 2 * k
    lengths = data.draw(st.lists(st.integers(1, 15), min_size=bs, max_size=bs))
    table = torch.arange(1, 1 + (bs + 2) * 20, dtype=torch.int32).view(bs + 2, 20)
    owners = torch.randperm(bs + 2)[:bs]
    chosen = torch.arange(bs * (k + 1), dtype=torch.int32) + 10
    padded = data.draw(st.integers(bs, bs + 2))
    rows = rows_after_verify(
        chosen,
        torch.tensor(accept),
        torch.tensor(lengths),
        owners,
        table,
        k,
        MASK,
        DecodeRows.allocate(padded, k, "cpu"),
    )
    for i, (a, length) in enumerate(zip(accept, lengths, strict=True)):
        for r in range(width):
            at, real, used = i * width + r, r < a, r < a + k - 1
            inside = used and length + r < 20
            assert rows.is_mask[at] == (used and not real) and rows.is_padding[at] != used
            assert rows.input_ids[at] == (chosen[i * (k + 1) + r] if real else MASK)
            assert rows.source[at] == (i * (k + 1) + r if real else MASK_ROW)
            assert rows.positions[at] == (length + r if used else 0)
            assert rows.kv_slots[at] == (table[owners[i], length + r] if inside else PADDING_KV_SLOT)
        assert rows.select_index[i * k : (i + 1) * k].tolist() == [i * width + a - 1 + j for j in range(k)]
    assert rows.is_padding[bs * width :].all() and (rows.kv_slots[bs * width :] == PADDING_KV_SLOT).all()
    assert (rows.select_index < padded * width).all()


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
        expected_source += [*range(start, start + n), *[MASK_ROW] * m]
        last = len(expected_ids) - m - 1
        expected_select += [last + min(j, m) for j in range(k)]
        start += n
    assert rows.input_ids.tolist() == expected_ids
    assert rows.source.tolist() == expected_source
    assert rows.select_index.tolist() == expected_select
