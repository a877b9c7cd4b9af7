"""Distillation loss fused with both heads, in chunks of rows: nobody ever holds [N, vocab].

Forward KL(target || draft) over the draft vocabulary, or cross entropy with the target's top-1 ("ce"). The gradient
of each chunk is taken while its logits are still at hand, so the backward pass only scales what was stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.errors import InputError

LOSSES = ("kl", "ce")
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Labels:
    """Soft labels kept as hidden states: row m's target distribution is softmax(target_rows @ states[index[m]]).

    states: [S, H_t], the target's final hidden state per slot (after its final norm); target_rows: [V_d, H_t], the
    rows of the target's head for the draft vocabulary; index: int64[M], the slot whose distribution labels row m.
    """

    states: Tensor
    target_rows: Tensor
    index: Tensor


def distillation_loss(
    hidden: Tensor, lm_head: Tensor, labels: Labels, weight: Tensor, loss: str = "kl", chunk_rows: int = CHUNK_ROWS
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the rows' losses, and which rows' top-1 equals the target's.

    hidden: [M, H], normed; lm_head: [V_d, H]; weight: float[M]. Returns (scalar in fp32 or fp64, bool[M]).
    Gradients flow to hidden and lm_head. Raises InputError on an unknown loss.
    """
    if loss not in LOSSES:
        raise InputError(f"unknown loss {loss!r}; choose from {', '.join(LOSSES)}")
    return _Distillation.apply(hidden, lm_head, labels, weight, loss, chunk_rows)


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in at least float32."""
    logits = x @ weight.to(x.dtype).T
    return logits if logits.dtype == torch.float64 else logits.float()


def _target_logits(labels: Labels, index: Tensor) -> Tensor:
    """[rows, V_d]; each slot is projected once, however many rows of the chunk share it."""
    slot, row_of = index.unique(return_inverse=True)
    return _logits(labels.states[slot], labels.target_rows)[row_of]


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, lm_head, labels, weight, loss, chunk_rows):
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_head = torch.zeros_like(lm_head) if needs_head else None
        # Rows that share a slot stand together, so that a chunk projects as few slots as possible.
        for rows in labels.index.argsort().split(chunk_rows):
            w = weight[rows].to(total.dtype)
            log_q = _logits(hidden[rows], lm_head).log_softmax(-1)
            log_p = _target_logits(labels, labels.index[rows]).log_softmax(-1).to(log_q.dtype)
            top = log_p.argmax(-1)
            correct[rows] = log_q.argmax(-1) == top
            if loss == "kl":
                p = log_p.exp()
                total += (w * (p * (log_p - log_q)).sum(-1)).sum()
            else:
                p = torch.zeros_like(log_q).scatter_(-1, top[:, None], 1.0)
                total -= (w * log_q.gather(-1, top[:, None])[:, 0]).sum()
            if grad_hidden is not None or grad_head is not None:
                grad = (log_q.exp().sub_(p).mul_(w[:, None])).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad @ lm_head.to(grad.dtype)).to(grad_hidden.dtype)
                if grad_head is not None:
                    grad_head += (grad.T @ hidden[rows]).to(grad_head.dtype)
        ctx.mark_non_differentiable(correct)
        ctx.grads = grad_hidden, grad_head
        return total, correct

    @staticmethod
    def backward(ctx, grad_total, _):
        grad_hidden, grad_head = ctx.grads
        scale = [None if g is None else g * grad_total.to(g.dtype) for g in (grad_hidden, grad_head)]
        return *scale, None, None, None, None
