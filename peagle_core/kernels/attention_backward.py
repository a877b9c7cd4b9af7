"""Backward kernels of element attention. Scores are computed again from the saved log-sum-exps (base 2).

Three kernels, none of which needs another's result:
grad_query      as the forward pass: a block of rows against the keys it sees, own chain included
grad_chain_kv   keys at depth >= 1: each is seen by the few rows after it in its chain, so it gathers from them
grad_context_kv depth-0 keys: a block of keys against the contiguous range of rows that may see it; the range can be
                split over programs that add up atomically (faster), or not (bit-for-bit reproducible)
With p = exp2(score - lse) and delta = sum(dO * O): dS = p (dO V' - delta), dQ = dS K, dK = dS' Q, dV = p' dO.
"""

from __future__ import annotations

import triton
import triton.language as tl

from peagle_core.kernels.attention_forward import load_rows, row_ranges


@triton.jit
def _add_context_to_grad_query(
    grad_q, q, grad, lse, delta, KC, VC, dims, first, last, low, high, num_keys, kv_stride, scale,
    BLOCK_N: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(low, high, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < num_keys
        k = load_rows(KC, column, dims, kv_stride, inside, HEAD_DIM)
        v = load_rows(VC, column, dims, kv_stride, inside, HEAD_DIM)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None])
        if MASKED:
            visible = (column[None, :] >= first[:, None]) & (column[None, :] < last[:, None])
            p = tl.where(visible, p, 0.0)
        grad_score = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        grad_q += tl.dot(grad_score.to(k.dtype), k, input_precision=PRECISION)
    return grad_q


@triton.jit
def grad_query(
    Q, KC, VC, K, V, FIRST, LAST, OWN, GRAD, LSE, DELTA, GRAD_Q, num_rows, num_keys, reach, scale, plain_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """GRAD, GRAD_Q: [N, HEADS, HEAD_DIM]; LSE, DELTA: float32[HEADS, N]; plain_scale: 1 / sqrt(HEAD_DIM); the rest as
    in `attention_forward`. Grid (row blocks, heads).
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    kv_head = head // GROUP
    q_stride = HEADS * HEAD_DIM
    kv_stride = HEADS // GROUP * HEAD_DIM
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < num_rows
    dims = tl.arange(0, BLOCK_D)
    q = load_rows(Q + head * HEAD_DIM, rows, dims, q_stride, live, HEAD_DIM)
    grad = load_rows(GRAD + head * HEAD_DIM, rows, dims, q_stride, live, HEAD_DIM)
    lse = tl.load(LSE + head.to(tl.int64) * num_rows + rows, mask=live, other=0.0)
    delta = tl.load(DELTA + head.to(tl.int64) * num_rows + rows, mask=live, other=0.0)
    KC += kv_head * HEAD_DIM
    VC += kv_head * HEAD_DIM
    K += kv_head * HEAD_DIM
    V += kv_head * HEAD_DIM

    first, last, low, body_low, body_high, high = row_ranges(FIRST, LAST, rows, live, BLOCK_N)
    grad_q = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    grad_q = _add_context_to_grad_query(
        grad_q, q, grad, lse, delta, KC, VC, dims, first, last, low, body_low, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, True, PRECISION,
    )  # fmt: skip
    grad_q = _add_context_to_grad_query(
        grad_q, q, grad, lse, delta, KC, VC, dims, first, last, body_low, body_high, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, False, PRECISION,
    )  # fmt: skip
    grad_q = _add_context_to_grad_query(
        grad_q, q, grad, lse, delta, KC, VC, dims, first, last, body_high, high, num_keys, kv_stride, scale,
        BLOCK_N, HEAD_DIM, True, PRECISION,
    )  # fmt: skip

    own = tl.load(OWN + rows, mask=live, other=0)
    q32, grad32 = q.to(tl.float32), grad.to(tl.float32)
    for back in range(reach):
        seen = back < own
        k = load_rows(K, rows - back, dims, kv_stride, seen, HEAD_DIM).to(tl.float32)
        v = load_rows(V, rows - back, dims, kv_stride, seen, HEAD_DIM).to(tl.float32)
        p = tl.where(seen, tl.exp2(tl.sum(q32 * k, 1) * scale - lse), 0.0)
        grad_score = p * (tl.sum(grad32 * v, 1) - delta)
        grad_q += grad_score[:, None] * k

    offsets = rows.to(tl.int64)[:, None] * q_stride + head * HEAD_DIM + dims[None, :]
    mask = live[:, None] & (dims[None, :] < HEAD_DIM)
    tl.store(GRAD_Q + offsets, (grad_q * plain_scale).to(GRAD_Q.dtype.element_ty), mask=mask)


@triton.jit
def grad_chain_kv(
    Q, K, V, OWN, GRAD, LSE, DELTA, GRAD_K, GRAD_V, num_rows, reach, scale, plain_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """GRAD_K, GRAD_V: [N, HEADS/GROUP, HEAD_DIM]. Row i's key is seen by row i+ahead iff own[i+ahead] > ahead.
    Grid (row blocks, key heads).
    """
    kv_head = tl.program_id(1)
    q_stride = HEADS * HEAD_DIM
    kv_stride = HEADS // GROUP * HEAD_DIM
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < num_rows
    dims = tl.arange(0, BLOCK_D)
    k = load_rows(K + kv_head * HEAD_DIM, rows, dims, kv_stride, live, HEAD_DIM).to(tl.float32)
    v = load_rows(V + kv_head * HEAD_DIM, rows, dims, kv_stride, live, HEAD_DIM).to(tl.float32)
    grad_k = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    grad_v = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for ahead in range(reach):
        query = rows + ahead
        sees = tl.load(OWN + query, mask=query < num_rows, other=0) > ahead
        for member in range(GROUP):
            head = kv_head * GROUP + member
            q = load_rows(Q + head * HEAD_DIM, query, dims, q_stride, sees, HEAD_DIM).to(tl.float32)
            grad = load_rows(GRAD + head * HEAD_DIM, query, dims, q_stride, sees, HEAD_DIM).to(tl.float32)
            lse = tl.load(LSE + head.to(tl.int64) * num_rows + query, mask=sees, other=0.0)
            delta = tl.load(DELTA + head.to(tl.int64) * num_rows + query, mask=sees, other=0.0)
            p = tl.where(sees, tl.exp2(tl.sum(q * k, 1) * scale - lse), 0.0)
            grad_score = p * (tl.sum(grad * v, 1) - delta)
            grad_v += p[:, None] * grad
            grad_k += grad_score[:, None] * q
    offsets = rows.to(tl.int64)[:, None] * kv_stride + kv_head * HEAD_DIM + dims[None, :]
    mask = live[:, None] & (dims[None, :] < HEAD_DIM)
    tl.store(GRAD_K + offsets, (grad_k * plain_scale).to(GRAD_K.dtype.element_ty), mask=mask)
    tl.store(GRAD_V + offsets, grad_v.to(GRAD_V.dtype.element_ty), mask=mask)


@triton.jit
def grad_context_kv(
    Q, KC, VC, FIRST, LAST, GRAD, LSE, DELTA, ROW_LOW, ROW_HIGH, GRAD_KC, GRAD_VC,
    num_rows, num_keys, scale, plain_scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """GRAD_KC, GRAD_VC: float32[C, HEADS/GROUP, HEAD_DIM], zeros beforehand where SPLITS > 1. ROW_LOW, ROW_HIGH: int32
    per key block, the rows that may see any of its keys. Grid (key blocks, key heads, SPLITS).
    """
    block = tl.program_id(0)  # early keys are seen by more rows: the longest programs go first
    kv_head = tl.program_id(1)
    q_stride = HEADS * HEAD_DIM
    kv_stride = HEADS // GROUP * HEAD_DIM
    columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = columns < num_keys
    dims = tl.arange(0, BLOCK_D)
    k = load_rows(KC + kv_head * HEAD_DIM, columns, dims, kv_stride, inside, HEAD_DIM)
    v = load_rows(VC + kv_head * HEAD_DIM, columns, dims, kv_stride, inside, HEAD_DIM)
    grad_k = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    grad_v = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)

    row_low = tl.load(ROW_LOW + block)
    row_high = tl.load(ROW_HIGH + block)
    share = tl.cdiv(tl.cdiv(row_high - row_low, BLOCK_M), SPLITS) * BLOCK_M
    row_low += tl.program_id(2) * share
    row_high = tl.minimum(row_high, row_low + share)
    for start in range(row_low, row_high, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        live = rows < row_high
        first = tl.load(FIRST + rows, mask=live, other=0)
        last = tl.load(LAST + rows, mask=live, other=0)
        visible = (columns[None, :] >= first[:, None]) & (columns[None, :] < last[:, None])
        for member in range(GROUP):
            head = kv_head * GROUP + member
            q = load_rows(Q + head * HEAD_DIM, rows, dims, q_stride, live, HEAD_DIM)
            grad = load_rows(GRAD + head * HEAD_DIM, rows, dims, q_stride, live, HEAD_DIM)
            lse = tl.load(LSE + head.to(tl.int64) * num_rows + rows, mask=live, other=0.0)
            delta = tl.load(DELTA + head.to(tl.int64) * num_rows + rows, mask=live, other=0.0)
            p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None])
            p = tl.where(visible, p, 0.0)
            grad_v += tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision=PRECISION)
            grad_score = p * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            grad_k += tl.dot(tl.trans(grad_score.to(q.dtype)), q, input_precision=PRECISION)

    offsets = columns.to(tl.int64)[:, None] * kv_stride + kv_head * HEAD_DIM + dims[None, :]
    mask = inside[:, None] & (dims[None, :] < HEAD_DIM)
    if SPLITS == 1:
        tl.store(GRAD_KC + offsets, grad_k * plain_scale, mask=mask)
        tl.store(GRAD_VC + offsets, grad_v, mask=mask)
    else:
        tl.atomic_add(GRAD_KC + offsets, grad_k * plain_scale, mask=mask)
        tl.atomic_add(GRAD_VC + offsets, grad_v, mask=mask)
