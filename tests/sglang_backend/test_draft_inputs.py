"""Row layout after verification and after prefill, against loops written from the description."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from no_host_sync import NoHostSync, allowed

pytest.importorskip("sglang")

from sglang_backend import draft_inputs, scratch_kv_slots
from sglang_backend.draft_inputs import (
    MASK_ROW,
    PADDING_KV_SLOT,
    DecodeRows,
    kv_slots_of,
    rows_after_prefill,
    rows_after_verify,
)

MASK, WIDTH = 999, 64


@given(st.integers(1, 6), st.data())
def test_rows_after_verify(k, data):
    verified = data.draw(st.integers(1, k))  # of the K drafts before
    accept = data.draw(st.lists(st.integers(1, verified + 1), min_size=1, max_size=4))
    bs, width = len(accept), 2 * k
    lengths = data.draw(st.lists(st.integers(1, 15), min_size=bs, max_size=bs))
    table = torch.arange(1, 1 + (bs + 2) * 20, dtype=torch.int32).view(bs + 2, 20)
    owners = torch.randperm(bs + 2)[:bs]
    chosen = torch.arange(bs * (verified + 1), dtype=torch.int32) + 10
    padded = data.draw(st.integers(bs, bs + 2))
    rows = rows_after_verify(
        chosen,
        torch.tensor(accept),
        torch.tensor(lengths),
        owners,
        table,
        k,
        MASK,
        verified,
        DecodeRows.allocate(padded, k, "cpu"),
    )
    for i, (a, length) in enumerate(zip(accept, lengths, strict=True)):
        for r in range(width):
            at, real, used = i * width + r, r < a, r < a + k - 1
            inside = used and length + r < 20
            assert rows.input_ids[at] == (chosen[i * (verified + 1) + r] if real else MASK)
            assert rows.source[at] == (i * (verified + 1) + r if real else MASK_ROW)
            assert rows.positions[at] == (length + r if used else 0)
            assert rows.kv_slots[at] == (table[owners[i], length + r] if inside else PADDING_KV_SLOT)
        assert rows.select_index[i * k : (i + 1) * k].tolist() == [i * width + a - 1 + j for j in range(k)]
    assert (rows.source[bs * width :] == MASK_ROW).all() and (rows.kv_slots[bs * width :] == PADDING_KV_SLOT).all()
    assert (rows.select_index < padded * width).all()
    nothing = [0] * (padded - bs)  # a padded request: its own rows in row 0, whose every entry is the padding slot
    assert rows.ends.tolist() == [n + width for n in lengths + nothing]
    assert rows.owners.tolist() == owners.tolist() + nothing


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


class Pages:
    """SGLang's allocator of whole pages, as far as the scratch slots need it. Slots of one page follow each other."""

    def __init__(self, page_size: int, first: int) -> None:
        self.page_size, self.first, self.freed = page_size, first, []

    def alloc(self, size: int) -> torch.Tensor:
        pages = torch.arange(size // self.page_size).flip(0) * self.page_size + self.first
        return (pages[:, None] + torch.arange(self.page_size)).flatten()

    def free_segment(self, slots: torch.Tensor, start_pos: int) -> None:
        self.freed += slots.tolist()


def prefilled(lengths: list[int], page_size: int):
    """(batch, allocator, table) of prompts of these lengths, each in pages of its own from a multiple of the size."""
    table = torch.zeros(len(lengths) + 1, WIDTH, dtype=torch.int32)
    for i, length in enumerate(lengths):
        table[i + 1, :length] = torch.arange(length) + 64 * (i + 1)
    batch = SimpleNamespace(tree_cache=None, req_pool_indices_cpu=torch.arange(len(lengths)) + 1)
    return batch, Pages(page_size, 64 * (len(lengths) + 2)), table


@pytest.fixture(autouse=True)
def nothing_to_evict(monkeypatch) -> None:
    monkeypatch.setattr(scratch_kv_slots, "evict_from_tree_cache", lambda *_: None)


@given(st.sampled_from([1, 4, 16]), st.integers(1, 7), st.data())
def test_scratch_slots_follow_each_prompt(page_size, k, data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    masks = [data.draw(st.sampled_from([0, k - 1])) for _ in lengths]
    batch, allocator, table = prefilled(lengths, page_size)
    before = table.clone()
    with scratch_kv_slots.ScratchKVSlots(batch, allocator, table, lengths, masks) as scratch:
        assert scratch.available
        lent = []
        for i, (length, n) in enumerate(zip(lengths, masks, strict=True)):
            slots = table[i + 1, length : length + n].tolist()
            room = min(n, -length % page_size)  # the rest of the prompt's last page
            assert slots[:room] == [int(before[i + 1, length - 1]) + 1 + j for j in range(room)]
            assert all(slot == slots[room] + j % page_size for j, slot in enumerate(slots[room:][:page_size]))
            lent += slots[room:]
            assert torch.equal(table[i + 1, :length], before[i + 1, :length]) and not table[i + 1, length + n :].any()
        assert len(set(lent)) == len(lent) and set(lent) <= set([] if scratch.taken is None else scratch.taken.tolist())
    assert set(lent) <= set(allocator.freed)


def test_a_prefill_is_built_with_as_many_launches_for_any_number_of_requests(monkeypatch):
    for module in (draft_inputs, scratch_kv_slots):
        monkeypatch.setattr(module, "async_h2d", allowed(module.async_h2d))

    def launches(bs: int) -> int:
        lengths, masks = [5 + i % 7 for i in range(bs)], [4 - 4 * (i % 2) for i in range(bs)]
        batch, allocator, table = prefilled(lengths, 4)
        allocator.alloc, allocator.free_segment = allowed(allocator.alloc), allowed(allocator.free_segment)
        ids, tail = torch.arange(sum(lengths)), torch.arange(bs)
        with (
            NoHostSync(batch.req_pool_indices_cpu) as watched,
            scratch_kv_slots.ScratchKVSlots(batch, allocator, table, lengths, masks),
        ):
            rows_after_prefill(ids, tail, lengths, masks, 5, MASK)
            requests = batch.req_pool_indices_cpu.tolist()
            kv_slots_of(table, requests, [0] * bs, [n + m for n, m in zip(lengths, masks, strict=True)])
        return watched.calls

    assert launches(2) == launches(50) < 40


def test_kv_slots_are_those_of_the_table():
    table = torch.arange(5 * 9, dtype=torch.int32).view(5, 9)
    slots = kv_slots_of(table, [3, 1, 4], [2, 0, 7], [4, 0, 2])
    assert slots.dtype == torch.int64
    assert slots.tolist() == [*table[3, 2:6].tolist(), *table[4, 7:9].tolist()]
