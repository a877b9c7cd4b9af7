"""Attention over part of the keys, the join of two parts, and the backward pass of a part within the whole.

All tensors are [batch, rows, D] (log-sum-exps [batch, rows, 1]), mask is additive and optional: [rows, keys] or with a
batch. With p = exp(scores - lse) and delta = sum(grad * out), `out` and `lse` being those of the *joined* attention,
every part's backward pass is dV = p' grad, dS = p * (grad V' - delta), dQ = dS K / sqrt(D), dK = dS' Q / sqrt(D).
"""

from __future__ import annotations

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # output, log-sum-exp


LOG2E = 1.4426950408889634


def plain_part(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Part:
    """Compute attention over one part of the keys, written out.

    A row that sees no key gives output 0 and log-sum-exp -inf.
    """
    scores = _scores(q, k, mask)
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    p = scores.sub_(top).exp2_()
    total = p.sum(-1, keepdim=True)
    return p @ v / total.clamp(min=torch.finfo(p.dtype).tiny), (top + total.log2()) / LOG2E


def plain_part_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK, dV of one part of the keys, written out."""
    p = _scores(q, k, mask).sub_(_finite(lse) * LOG2E).exp2_()
    delta = (grad * out).sum(-1, keepdim=True)
    grad_scores = (grad @ v.transpose(-1, -2)).sub_(delta).mul_(p).mul_(q.shape[-1] ** -0.5)
    return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, p.transpose(-1, -2) @ grad


def _scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the scores in base 2.

    On CPUs torch.exp is some 50 times slower where a mask makes it underflow; torch.exp2 is not.
    """
    scores = (q * (q.shape[-1] ** -0.5 * LOG2E)) @ k.transpose(-1, -2)
    return scores if mask is None else scores.add_(mask)


def _finite(lse: Tensor) -> Tensor:
    """Replace -inf, of rows without a key, by 0: exp(-inf - 0) = 0 where exp(-inf + inf) would be NaN."""
    return lse.masked_fill(lse == float("-inf"), 0.0)


def join(a: Part, b: Part) -> Part:
    """Return the attention over the keys of both parts."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = torch.logaddexp(lse_a, lse_b)
    scale = _finite(lse)
    return out_a * (lse_a - scale).exp() + out_b * (lse_b - scale).exp(), lse


# PyTorch's flash kernel for CPUs. The public function around it keeps the log-sum-exp for itself.
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def _has_flash(q: Tensor) -> bool:
    return q.device.type == "cpu" and hasattr(torch.ops.aten, FLASH)


def context_part(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Part:
    """Compute `plain_part` where every row sees a key, by a flash kernel where there is one."""
    if not _has_flash(q):
        return plain_part(q, k, v, mask)
    out, lse = getattr(torch.ops.aten, FLASH)(q[None], k[None], v[None], attn_mask=mask)
    return out[0], lse[0, ..., None]


def context_part_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `plain_part_backward` where every row sees a key, likewise."""
    if not _has_flash(q):
        return plain_part_backward(grad, q, k, v, out, lse, mask)
    batched = (x[None] for x in (grad, q, k, v, out))
    backward = getattr(torch.ops.aten, FLASH + "_backward")
    grads = backward(*batched, lse[None, ..., 0], 0.0, False, attn_mask=mask)
    return tuple(x[0] for x in grads)
