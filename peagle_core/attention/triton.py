"""Attention in N x S scores as Triton kernels (peagle_core.kernels): the backend for GPUs. float32 accumulation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peagle_core.attention.base import ElementAttention
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.kernels import runs_on


@dataclass(frozen=True)
class Blocks:
    """Rows and keys per program, and warps, of the three heavy kernels; splits of the key gradient's row range.

    The defaults fit Hopper's registers at head size 128 without spilling (ptxas); `tools.bench kernels --tune` times
    others on the GPU at hand.
    """

    forward: tuple[int, int, int] = (128, 64, 8)
    grad_query: tuple[int, int, int] = (64, 64, 8)
    grad_context: tuple[int, int, int] = (64, 64, 8)
    splits: int = 4
    stages: int = 2


CHAIN_ROWS = 32


class TritonAttention(ElementAttention):
    """deterministic: gradients equal bit for bit from run to run; default: torch.use_deterministic_algorithms.

    Raises InputError where the kernels cannot run.
    """

    def __init__(
        self,
        elements: Elements,
        doc_ids: Tensor,
        *,
        slots: Tensor | None = None,
        deterministic: bool | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        if not runs_on(elements.anchor.device):
            raise InputError(
                f"attention backend 'triton' needs a GPU, the elements are on {elements.anchor.device}; "
                f"choose 'torch', or set TRITON_INTERPRET=1 to run the kernels slowly in Python"
            )
        super().__init__(elements, doc_ids, slots=slots)
        blocks = blocks or Blocks()
        if torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic:
            blocks = Blocks(blocks.forward, blocks.grad_query, blocks.grad_context, 1, blocks.stages)
        layout = self.layout
        num_keys = len(slots) if slots is not None else len(layout.context_rows)  # type: ignore[arg-type]
        self.plan = _Plan(layout.first, layout.last, layout.own, num_keys, blocks)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, context: tuple[Tensor, Tensor] | None = None) -> Tensor:
        k_context, v_context = (x.to(q.dtype) for x in self.context_of(k, v, context))
        return _TritonAttention.apply(q, k_context, v_context, k, v, self.plan)


class _Plan:
    """The layout as the kernels read it: int32, and per block of keys the range of rows that may see any of them."""

    def __init__(self, first: Tensor, last: Tensor, own: Tensor, num_keys: int, blocks: Blocks) -> None:
        self.blocks, self.num_keys = blocks, num_keys
        self.first, self.last, self.own = (x.int().contiguous() for x in (first, last, own))
        self.reach = int(own.max()) if len(own) else 0
        block = blocks.grad_context[1]
        low = torch.arange(0, num_keys, block, device=first.device)
        # first and last never decrease, so these are ranges.
        self.row_low = torch.searchsorted(last, low, right=True).int()
        self.row_high = torch.searchsorted(first, low + block - 1, right=True).int()


def _shapes(q: Tensor, k: Tensor) -> dict[str, Any]:
    heads, dim = q.shape[1:]
    return {
        "HEADS": heads,
        "GROUP": heads // k.shape[1],
        "HEAD_DIM": dim,
        "BLOCK_D": max(16, 1 << (dim - 1).bit_length()),
    }


def _launch(blocks: tuple[int, int, int], q: Tensor, stages: int) -> dict[str, Any]:
    rows, keys, warps = blocks
    # float32 products stay float32; the default would round them to TF32.
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    return {"BLOCK_M": rows, "BLOCK_N": keys, "PRECISION": precision, "num_warps": warps, "num_stages": stages}


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k_context: Tensor, v_context: Tensor, k: Tensor, v: Tensor, plan: _Plan) -> Tensor:
        from peagle_core.kernels.attention_forward import attention_forward

        q, k_context, v_context, k, v = (x.contiguous() for x in (q, k_context, v_context, k, v))
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[1], len(q), dtype=torch.float32)
        if len(q):
            grid = (-(-len(q) // plan.blocks.forward[0]), q.shape[1])
            attention_forward[grid](
                q, k_context, v_context, k, v, plan.first, plan.last, plan.own, out, lse,
                len(q), plan.num_keys, plan.reach, math.log2(math.e) / math.sqrt(q.shape[-1]),
                **_shapes(q, k), **_launch(plan.blocks.forward, q, plan.blocks.stages),
            )  # fmt: skip
        ctx.plan = plan
        ctx.save_for_backward(q, k_context, v_context, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from peagle_core.kernels.attention_backward import grad_chain_kv, grad_context_kv, grad_query

        q, k_context, v_context, k, v, out, lse = ctx.saved_tensors
        plan, grad = ctx.plan, grad.contiguous()
        blocks, kv_heads = plan.blocks, k.shape[1]
        delta = (grad.float() * out.float()).sum(-1).T.contiguous()
        plain_scale = 1 / math.sqrt(q.shape[-1])
        scale = math.log2(math.e) * plain_scale
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        new = torch.empty_like if blocks.splits == 1 else torch.zeros_like
        grad_kc, grad_vc = (new(x, dtype=torch.float32) for x in (k_context, v_context))
        if len(q):
            grad_query[(-(-len(q) // blocks.grad_query[0]), q.shape[1])](
                q, k_context, v_context, k, v, plan.first, plan.last, plan.own, grad, lse, delta, grad_q,
                len(q), plan.num_keys, plan.reach, scale, plain_scale,
                **_shapes(q, k), **_launch(blocks.grad_query, q, blocks.stages),
            )  # fmt: skip
            if plan.reach:
                grad_chain_kv[(-(-len(q) // CHAIN_ROWS), kv_heads)](
                    q, k, v, plan.own, grad, lse, delta, grad_k, grad_v, len(q), plan.reach, scale, plain_scale,
                    BLOCK_M=CHAIN_ROWS, num_warps=4, **_shapes(q, k),
                )  # fmt: skip
        if plan.num_keys:
            grad_context_kv[(len(plan.row_low), kv_heads, blocks.splits)](
                q, k_context, v_context, plan.first, plan.last, grad, lse, delta, plan.row_low, plan.row_high,
                grad_kc, grad_vc, len(q), plan.num_keys, scale, plain_scale, SPLITS=blocks.splits,
                **_shapes(q, k), **_launch(blocks.grad_context, q, blocks.stages),
            )  # fmt: skip
        return grad_q, grad_kc.to(k_context.dtype), grad_vc.to(v_context.dtype), grad_k, grad_v, None
