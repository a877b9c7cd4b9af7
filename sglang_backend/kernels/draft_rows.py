"""The drafter's batch after verification, in one launch, and the states its rows read, in another.

No program learns anything on the host: how many drafts were accepted stays on the device. Every store is guarded by
the size of the buffer it goes to, so a kernel may be given buffers for more, or fewer, requests than there are.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_COLUMNS = 1024


# Not specialized on counts that change from step to step: each new kind would compile anew while requests wait.
@triton.jit(do_not_specialize=["num_requests", "num_rows", "num_selected", "num_ends", "num_verified"])
def expand_rows(
    NEXT_TOKENS, ACCEPTED, LENGTHS, REQUESTS, TABLE, INPUT_IDS, POSITIONS, KV_SLOTS, SOURCE, SELECT,
    ENDS, OWNERS, num_requests, table_width, mask_token_id, num_rows, num_selected, num_ends, num_verified,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the rows of one request per program; programs past num_requests write padding.

    Arguments as in `draft_inputs.fill_rows`.
    TABLE: int32[requests, table_width], REQUESTS: rows of it; num_rows, num_selected, num_ends: sizes of the outputs
    (OWNERS is as long as ENDS); BLOCK: a power of two >= 2 * K.
    """
    request = tl.program_id(0)
    live = request < num_requests
    accepted = tl.load(ACCEPTED + request, mask=live, other=0).to(tl.int32)
    length = tl.load(LENGTHS + request, mask=live, other=0).to(tl.int64)
    owner = tl.load(REQUESTS + request, mask=live, other=0).to(tl.int64)

    row = tl.arange(0, BLOCK)
    real = row < accepted
    used = (row < accepted + K - 1) & (accepted > 0)
    verified = request * (num_verified + 1) + row
    token = tl.load(NEXT_TOKENS + verified, mask=real, other=0).to(tl.int64)
    position = length + row
    kv_slot = tl.load(TABLE + owner * table_width + position, mask=used & (position < table_width), other=0)

    out = request * 2 * K + row
    fits = (row < 2 * K) & (out < num_rows)
    tl.store(INPUT_IDS + out, tl.where(real, token, mask_token_id), mask=fits)
    tl.store(POSITIONS + out, tl.where(used, position, 0), mask=fits)
    tl.store(KV_SLOTS + out, kv_slot.to(tl.int64), mask=fits)
    tl.store(SOURCE + out, tl.where(real, verified, -1).to(tl.int64), mask=fits)

    sampled = request * K + row
    last_real = request * 2 * K + tl.maximum(accepted - 1, 0)
    tl.store(SELECT + sampled, (last_real + row).to(tl.int64), mask=(row < K) & (sampled < num_selected))
    tl.store(ENDS + request, length + 2 * K, mask=request < num_ends)
    tl.store(OWNERS + request, owner, mask=request < num_ends)


def expand(
    out, next_token_ids: Tensor, accept_lens: Tensor, seq_lens: Tensor, req_pool_indices: Tensor, req_to_token: Tensor,
    num_draft_tokens: int, mask_token_id: int, num_verified: int,
) -> None:  # fmt: skip
    """Compute `draft_inputs.fill_rows` in one launch. All tensors contiguous."""
    num_rows = out.input_ids.numel()
    grid = (triton.cdiv(num_rows, 2 * num_draft_tokens),)
    if num_rows:
        expand_rows[grid](
            next_token_ids, accept_lens, seq_lens, req_pool_indices, req_to_token, out.input_ids, out.positions,
            out.kv_slots, out.source, out.select_index, out.ends, out.owners, accept_lens.numel(),
            req_to_token.shape[1], mask_token_id, num_rows, out.select_index.numel(), out.ends.numel(), num_verified,
            K=num_draft_tokens, BLOCK=triton.next_power_of_2(2 * num_draft_tokens), num_warps=1,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_states", "num_rows"])
def read_states(STATES, MASK_STATE, SOURCE, OUT, num_states, num_rows, width, BLOCK: tl.constexpr):
    """Read OUT[row] = STATES[SOURCE[row]], or MASK_STATE where that is no row of STATES.

    Grid (rows, blocks of columns).
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width) & (row < num_rows)
    source = tl.load(SOURCE + row, mask=row < num_rows, other=-1)
    real = (source >= 0) & (source < num_states)
    state = tl.load(STATES + source * width + column, mask=inside & real, other=0.0)
    mask_state = tl.load(MASK_STATE + column, mask=inside & (real == 0), other=0.0)
    tl.store(OUT + row * width + column, tl.where(real, state, mask_state), mask=inside)


def read(states: Tensor, mask_state: Tensor, source: Tensor, out: Tensor) -> Tensor:
    """Compute `draft_inputs.hidden_rows` into out [rows, H].

    states: [T, H], mask_state: [1, H], all contiguous.
    """
    rows, width = out.shape
    block = min(MAX_COLUMNS, triton.next_power_of_2(width))
    if rows:
        grid = (source.numel(), triton.cdiv(width, block))
        read_states[grid](states, mask_state, source, out, states.shape[0], rows, width, BLOCK=block)
    return out
