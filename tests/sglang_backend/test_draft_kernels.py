"""The kernels that build the drafter's batch, under Triton's interpreter, against the torch references.

(mechanism: see tests/peagle_core/test_attention_triton.py)
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from interpreter import INTERPRETED, interpreted, outside, run_under_the_interpreter

triton = pytest.importorskip("triton")
pytest.importorskip("sglang")

from sglang_backend.draft_inputs import DecodeRows, fill_rows, hidden_rows  # noqa: E402
from sglang_backend.kernels import draft_rows  # noqa: E402

compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels do not compile")

MASK, TABLE_WIDTH, CANARY = 999, 24, -77


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@st.composite
def verified_batches(draw) -> tuple[int, dict[str, Any]]:
    """K 1..8 and 1..8 requests with any number of accepted drafts, some close to the end of the table of KV slots."""
    k = draw(st.integers(1, 8))
    accept = draw(st.lists(st.integers(1, k + 1), min_size=1, max_size=8))
    bs = len(accept)
    owners = torch.tensor(draw(st.permutations(range(10))))[:bs]
    return k, {
        "next_token_ids": torch.arange(bs * (k + 1), dtype=draw(st.sampled_from([torch.int32, torch.int64]))) + 10,
        "accept_lens": torch.tensor(accept, dtype=torch.int32),
        "seq_lens": torch.tensor(draw(st.lists(st.integers(1, TABLE_WIDTH - 1), min_size=bs, max_size=bs))),
        "req_pool_indices": owners,
        "req_to_token": torch.arange(1, 1 + 10 * TABLE_WIDTH, dtype=torch.int32).view(10, TABLE_WIDTH),
        "num_draft_tokens": k,
        "mask_token_id": MASK,
    }


def guarded(rows: int, drafts: int) -> tuple[DecodeRows, DecodeRows]:
    """(buffers of these sizes, the same with canaries behind them in memory)."""
    sizes = [drafts if field.name == "select_index" else rows for field in fields(DecodeRows)]
    wide = DecodeRows(
        *[torch.full((n + 64,), CANARY) for n in sizes[:5]], *[torch.ones(n + 64).bool() for n in sizes[5:]]
    )
    return DecodeRows(*[getattr(wide, f.name)[:n] for f, n in zip(fields(wide), sizes, strict=True)]), wide


@interpreted
@given(verified_batches(), st.integers(-20, 40), st.integers(-10, 20))
def test_rows_equal_the_reference_and_stay_inside_their_buffers(case, more_rows, more_drafts):
    """Buffers for fewer requests than there are, for more, and for a part of one."""
    k, batch = case
    bs = len(batch["accept_lens"])
    rows, drafts = max(1, 2 * k * bs + more_rows), max(1, k * bs + more_drafts)
    ours, ours_wide = guarded(rows, drafts)
    reference, _ = guarded(rows, min(drafts, k * -(-rows // (2 * k))))
    draft_rows.expand(ours, **batch)
    fill_rows(reference, **batch)
    for field in fields(DecodeRows):
        value, expected, wide = (getattr(x, field.name) for x in (ours, reference, ours_wide))
        assert torch.equal(value[: len(expected)], expected), field.name
        behind = wide[len(expected) :]
        assert (behind == (True if behind.dtype == torch.bool else CANARY)).all(), field.name


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


TYPES = """
*i32 TABLE ACCEPTED
*i64 NEXT_TOKENS LENGTHS REQUESTS INPUT_IDS POSITIONS KV_SLOTS SOURCE SELECT
*u8 IS_MASK IS_PADDING
*bf16 STATES MASK_STATE OUT
i32 num_requests table_width mask_token_id num_rows num_selected num_states width
"""
KERNELS = [
    ("expand_rows", {"K": 1, "BLOCK": 2}), ("expand_rows", {"K": 7, "BLOCK": 16}), ("read_states", {"BLOCK": 1024}),
]  # fmt: skip


@compiled
@pytest.mark.parametrize(("name", "constants"), KERNELS)
def test_it_compiles(name, constants):
    """For Hopper, down to machine code; no GPU is needed (see tests/peagle_core/test_kernels_compile.py)."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {arg: line.split()[0] for line in TYPES.strip().splitlines() for arg in line.split()[1:]}
    kernel = getattr(draft_rows, name)
    signature = {arg: "constexpr" if arg in constants else types[arg] for arg in kernel.arg_names}
    values = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    assert len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0
