"""Two attentions, over the context keys and over a row's own chain, as one with its own backward pass.

Each part is ordinary attention with its own softmax; joined by their log-sum-exps they are attention over all keys
(peagle_core.attention.parts). Only the joined output and log-sum-exp are kept: given those, the backward pass of each
part is again ordinary (the identity flash attention rests on). Where the own keys are found is the subclass's affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peagle_core.attention.context import Context
from peagle_core.attention.parts import Part


class Joined(Context, ABC):
    """One call: queries, context keys and own keys. A subclass knows the shape of the own ones."""

    @abstractmethod
    def own(self) -> Part:
        """Attend every row to its own chain."""

    @abstractmethod
    def own_backward(self, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dQ [kv_heads, group, N, D], dK and dV in the shape they were given in, given the joined attention."""


def joined_attention(
    call: type[Joined], q: Tensor, context: tuple[Tensor, Tensor], k: Tensor, v: Tensor, plan: Any
) -> Tensor:
    """q: [N, heads, D]; context: keys and values [C, kv_heads, D]; k, v and plan: what `call` takes -> as q."""
    return _JoinedAttention.apply(q, *context, k, v, call, plan)


class _JoinedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k_context: Tensor,
        v_context: Tensor,
        k: Tensor,
        v: Tensor,
        call: Callable[..., Joined],
        plan: Any,
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            problem = call(q, (k_context, v_context, k, v), plan)
            out, lse = problem.own()
            problem.absorb((out, lse))
        ctx.call, ctx.plan = call, plan
        out = out.flatten(0, 1).transpose(0, 1).to(q.dtype)
        ctx.save_for_backward(q, k_context, v_context, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, *kv, out, lse = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            problem = ctx.call(q, kv, ctx.plan)
            joined = problem.grouped(grad), problem.grouped(out), lse
            grad_q, grad_k, grad_v = problem.own_backward(*joined)
            context = problem.backward(*joined, grad_q)
        grads = (grad_q.flatten(0, 1).transpose(0, 1), *(g.transpose(0, 1) for g in context), grad_k, grad_v)
        return *(g.to(x.dtype) for g, x in zip(grads, (q, *kv), strict=True)), None, None
