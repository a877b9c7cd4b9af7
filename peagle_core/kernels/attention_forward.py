"""Forward kernel of element attention: flash over the depth-0 keys, then the row's own chain, one running softmax.

Row i sees context keys first[i]..last[i]-1 and the own[i] rows that end with itself (peagle_core.attention.layout).
A program takes BLOCK_M rows of one head. Rows are anchor-major, so their ranges nearly coincide: whole blocks of keys
that every row sees need no mask, only the ragged ends do. The chain is at most K-1 keys, one row-wise product each.
Scores and sums are float32, exponentials in base 2.
"""

# Kernel arguments are upper case: pointers and compile-time constants, as is usual in Triton.
from __future__ import annotations

import triton
import triton.language as tl

# Stands for "no key yet"; finite, so that no -inf - -inf ever appears.
NOTHING = tl.constexpr(-1.0e30)


@triton.jit
def load_rows(BASE, rows, dims, row_stride, live, HEAD_DIM: tl.constexpr):
    """[rows, dims] of a tensor whose head offset is already in BASE; zeros outside."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + dims[None, :]
    return tl.load(BASE + offsets, mask=live[:, None] & (dims[None, :] < HEAD_DIM), other=0.0)


@triton.jit
def _absorb_context(
    acc, top, total, q, KC, VC, dims, first, last, low, high, num_keys, kv_stride, scale,
    BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the context keys low..high-1 into the running softmax, BLOCK_N at a time."""
    for start in range(low, high, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < num_keys
        k = load_rows(KC, column, dims, kv_stride, inside, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if MASKED:
            visible = (column[None, :] >= first[:, None]) & (column[None, :] < last[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(VC, column, dims, kv_stride, inside, HEAD_DIM)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        top = new_top
    return acc, top, total


@triton.jit
def row_ranges(FIRST, LAST, rows, live, BLOCK_N: tl.constexpr):
    """Per-row ranges, and the block's: low..body_low ragged, body_low..body_high seen by all rows, ..high ragged."""
    first = tl.load(FIRST + rows, mask=live, other=0)
    last = tl.load(LAST + rows, mask=live, other=0)
    low = tl.min(tl.where(live, first, 2147483647), 0)
    high = tl.max(last, 0)
    all_from = tl.max(first, 0)
    all_to = tl.min(tl.where(live, last, 2147483647), 0)
    body_low = low + tl.cdiv(all_from - low, BLOCK_N) * BLOCK_N
    body_high = body_low + tl.maximum(all_to - body_low, 0) // BLOCK_N * BLOCK_N
    return first, last, low, body_low, body_high, high


@triton.jit
def attention_forward(
    Q, KC, VC, K, V, FIRST, LAST, OWN, OUT, LSE, num_rows, num_keys, reach, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Q, OUT: [N, HEADS, HEAD_DIM]; KC, VC: [C, HEADS/GROUP, HEAD_DIM]; K, V: [N, HEADS/GROUP, HEAD_DIM]; FIRST, LAST,
    OWN: int32[N]; LSE: float32[HEADS, N], base 2. reach: the longest own chain; scale: log2(e) / sqrt(HEAD_DIM).
    Grid (row blocks, heads). All contiguous.
    """
    # Later rows see more keys: the longest programs go first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head // GROUP
    q_stride = HEADS * HEAD_DIM
    kv_stride = HEADS // GROUP * HEAD_DIM
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < num_rows
    dims = tl.arange(0, BLOCK_D)
    q = load_rows(Q + head * HEAD_DIM, rows, dims, q_stride, live, HEAD_DIM)
    KC += kv_head * HEAD_DIM
    VC += kv_head * HEAD_DIM
    K += kv_head * HEAD_DIM
    V += kv_head * HEAD_DIM

    first, last, low, body_low, body_high, high = row_ranges(FIRST, LAST, rows, live, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    top = total + NOTHING
    acc, top, total = _absorb_context(
        acc, top, total, q, KC, VC, dims, first, last, low, body_low, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, True, PRECISION,
    )  # fmt: skip
    acc, top, total = _absorb_context(
        acc, top, total, q, KC, VC, dims, first, last, body_low, body_high, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, False, PRECISION,
    )  # fmt: skip
    acc, top, total = _absorb_context(
        acc, top, total, q, KC, VC, dims, first, last, body_high, high, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, True, PRECISION,
    )  # fmt: skip

    own = tl.load(OWN + rows, mask=live, other=0)
    q32 = q.to(tl.float32)
    for back in range(reach):
        seen = back < own
        k = load_rows(K, rows - back, dims, kv_stride, seen, HEAD_DIM).to(tl.float32)
        score = tl.where(seen, tl.sum(q32 * k, 1) * scale, float("-inf"))
        new_top = tl.maximum(top, score)
        p = tl.exp2(score - new_top)
        shrink = tl.exp2(top - new_top)
        total = total * shrink + p
        v = load_rows(V, rows - back, dims, kv_stride, seen, HEAD_DIM).to(tl.float32)
        acc = acc * shrink[:, None] + p[:, None] * v
        top = new_top

    any_key = total > 0.0
    out = acc / tl.where(any_key, total, 1.0)[:, None]
    lse = tl.where(any_key, top + tl.log2(tl.where(any_key, total, 1.0)), 0.0)
    offsets = rows.to(tl.int64)[:, None] * q_stride + head * HEAD_DIM + dims[None, :]
    tl.store(OUT + offsets, out.to(OUT.dtype.element_ty), mask=live[:, None] & (dims[None, :] < HEAD_DIM))
    tl.store(LSE + head.to(tl.int64) * num_rows + rows, lse, mask=live)
