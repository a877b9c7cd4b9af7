"""The kernels that build the drafter's batch, under Triton's interpreter, against the torch references.

(mechanism: see tests/peagle_core/test_attention_triton.py)
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from compiled import compiled, compiles
from hypothesis import given
from hypothesis import strategies as st
from interpreter import interpreted, outside, run_under_the_interpreter

triton = pytest.importorskip("triton")
pytest.importorskip("sglang")

from peagle_core.errors import InputError  # noqa: E402
from sglang_backend import kernel_check  # noqa: E402
from sglang_backend.draft_inputs import DecodeRows, fill_rows, hidden_rows  # noqa: E402
from sglang_backend.kernels import draft_rows  # noqa: E402

MASK, TABLE_WIDTH, CANARY = 999, 24, -77


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@st.composite
def verified_batches(draw) -> tuple[int, dict[str, Any]]:
    """K 1..8 and 1..8 requests with any number of accepted drafts, some close to the end of the table of KV slots."""
    k = draw(st.integers(1, 8))
    verified = draw(st.integers(1, k))
    accept = draw(st.lists(st.integers(1, verified + 1), min_size=1, max_size=8))
    bs = len(accept)
    owners = torch.tensor(draw(st.permutations(range(10))))[:bs]
    return k, {
        "next_token_ids": torch.arange(bs * (verified + 1), dtype=draw(st.sampled_from([torch.int32, torch.int64])))
        + 10,
        "accept_lens": torch.tensor(accept, dtype=torch.int32),
        "seq_lens": torch.tensor(draw(st.lists(st.integers(1, TABLE_WIDTH - 1), min_size=bs, max_size=bs))),
        "req_pool_indices": owners,
        "req_to_token": torch.arange(1, 1 + 10 * TABLE_WIDTH, dtype=torch.int32).view(10, TABLE_WIDTH),
        "num_draft_tokens": k,
        "mask_token_id": MASK,
        "num_verified": verified,
    }


def guarded(rows: int, drafts: int, requests: int) -> tuple[DecodeRows, DecodeRows]:
    """(buffers of these sizes, the same with canaries behind them in memory)."""
    special = {"select_index": drafts, "ends": requests, "owners": requests}
    sizes = {field.name: special.get(field.name, rows) for field in fields(DecodeRows)}
    wide = DecodeRows(**{name: torch.full((n + 64,), CANARY) for name, n in sizes.items()})
    return DecodeRows(*[getattr(wide, name)[:n] for name, n in sizes.items()]), wide


@interpreted
@given(verified_batches(), st.integers(-20, 40), st.integers(-10, 20), st.integers(-2, 2))
def test_rows_equal_the_reference_and_stay_inside_their_buffers(case, more_rows, more_drafts, more_requests):
    """Buffers for fewer requests than there are, for more, and for a part of one."""
    k, batch = case
    bs = len(batch["accept_lens"])
    rows, drafts, requests = max(1, 2 * k * bs + more_rows), max(1, k * bs + more_drafts), max(1, bs + more_requests)
    ours, ours_wide = guarded(rows, drafts, requests)
    written = -(-rows // (2 * k))
    reference, _ = guarded(rows, min(drafts, k * written), min(requests, written))
    draft_rows.expand(ours, **batch)
    fill_rows(reference, **batch)
    for field in fields(DecodeRows):
        value, expected, wide = (getattr(x, field.name) for x in (ours, reference, ours_wide))
        assert torch.equal(value[: len(expected)], expected), field.name
        assert (wide[len(expected) :] == CANARY).all(), field.name


@interpreted
@given(st.integers(1, 9), st.integers(0, 12), st.sampled_from([1, 5, 16, 33]), st.integers(0, 10**6))
def test_states_equal_the_reference_and_stay_inside_their_buffer(num_states, rows, width, seed):
    rng = torch.Generator().manual_seed(seed)
    states, mask_state = torch.randn(num_states, width, generator=rng), torch.randn(1, width, generator=rng)
    source = torch.randint(-1, num_states, (rows,), generator=rng)
    wide = torch.full((rows + 3, width), float(CANARY))
    draft_rows.read(states, mask_state, source, wide[:rows])
    assert torch.equal(wide[:rows], hidden_rows(states, mask_state, source))
    assert (wide[rows:] == CANARY).all()


@interpreted
def test_states_of_more_rows_than_the_buffer_holds():
    states, source, wide = torch.randn(4, 8), torch.tensor([0, -1, 3, 2]), torch.full((5, 8), float(CANARY))
    draft_rows.read(states, torch.ones(1, 8), source, wide[:2])
    assert torch.equal(wide[:2], torch.stack([states[0], torch.ones(8)])) and (wide[2:] == CANARY).all()


@interpreted
@pytest.mark.parametrize("page_size", [1, 4])
def test_metadata_in_the_graph_is_complete(page_size):
    """SGLang's kernel that fa3 records, which is why `graphs` plans nothing before a replay: all of it anew."""
    from sglang.kernels.ops.attention.metadata import draft_extend_set_metadata

    bs, width, context = 3, 6, 40
    table = (torch.randperm(5 * context // page_size)[:, None] * page_size + torch.arange(page_size)).view(5, context)
    owners, lengths = torch.tensor([4, 0, 2]), torch.tensor([23, 7, 40])
    stale = [torch.full((n,), CANARY, dtype=torch.int32) for n in (bs, bs + 1, bs + 1)]
    stale[1][0] = stale[2][0] = 0
    pages = torch.full((bs, context // page_size), CANARY, dtype=torch.int32)
    widths = torch.full((bs,), width, dtype=torch.int32)
    draft_extend_set_metadata(*stale, pages, table.int(), owners, lengths, widths, page_size)
    assert stale[0].tolist() == lengths.tolist()
    assert stale[1].tolist() == [0, *lengths.cumsum(0).tolist()]
    assert stale[2].tolist() == [0, width, 2 * width, 3 * width]
    for row, owner, length in zip(pages, owners, lengths, strict=True):
        used = -(-int(length) // page_size)
        assert row[:used].tolist() == (table[owner, ::page_size][:used] // page_size).tolist()


@interpreted
def test_the_check_of_a_gpu_runs_every_kernel(monkeypatch):
    """`tools.bench parity` before its first server; SGLang's argmax is among them. And it sees a wrong row."""
    monkeypatch.setattr(kernel_check, "VOCABULARIES", (300,))
    monkeypatch.setattr(kernel_check, "WIDTHS", (33,))
    monkeypatch.setattr(kernel_check, "CHAINS", [(2, 70)])
    monkeypatch.setattr(kernel_check, "DRAFT_VOCABULARY", 40)
    batches = [(3, 2, 1), (1, 1, 0)]
    assert kernel_check.check_kernels(torch.device("cpu"), batches).startswith("kernels: ok: rows of 2 batches")
    monkeypatch.setattr(draft_rows, "expand", lambda out, **batch: fill_rows(out, **batch) or out.ends.add_(1))
    with pytest.raises(InputError, match="ends of K=3, 2 requests: differs first at \\[0\\]"):
        kernel_check.check_kernels(torch.device("cpu"), batches)


TYPES = """
*i32 TABLE ACCEPTED NEXT_TOKENS
*i64 LENGTHS REQUESTS INPUT_IDS POSITIONS KV_SLOTS SOURCE SELECT ENDS OWNERS
*bf16 STATES MASK_STATE OUT
i32 num_requests num_verified table_width mask_token_id num_rows num_selected num_ends num_states width
"""
KERNELS = [
    ("expand_rows", {"K": 1, "BLOCK": 2}), ("expand_rows", {"K": 7, "BLOCK": 16}), ("read_states", {"BLOCK": 1024}),
]  # fmt: skip


@compiled
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_it_compiles(name, constants, capability, record_property):
    compiles(getattr(draft_rows, name), TYPES, constants, capability, record_property)
