"""Chain verification: how many drafts the target accepts, and which token it adds itself (torch reference)."""

from __future__ import annotations

import torch
from torch import Tensor


def verify_chain(
    draft_tokens: Tensor,
    target_logits: Tensor,
    temperature: float = 0.0,
    draft_probs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[int, int]:
    """Return (accepted, bonus): draft_tokens[:accepted] stand, followed by token `bonus`.

    draft_tokens: int64[K]; target_logits: [K+1, V], row j the target's distribution after draft j. Greedy for
    temperature 0: a draft stands iff it is the argmax. Otherwise speculative sampling (Leviathan et al. 2023): draft
    x ~ q stands with probability min(1, p(x)/q(x)), and the first one refused is redrawn from max(p - q, 0), so the
    output follows p exactly. draft_probs: [K, V], the drafter's q; None means the drafts were chosen greedily, q = 1.
    """
    num_drafts = len(draft_tokens)
    if target_logits.shape[0] != num_drafts + 1:
        raise ValueError(f"{num_drafts} drafts need {num_drafts + 1} rows of target logits, got {len(target_logits)}")
    if temperature == 0.0:
        choice = target_logits.argmax(-1)
        accepted = int((choice[:-1] == draft_tokens).long().cumprod(0).sum())
        return accepted, int(choice[accepted])
    probs = (target_logits.double() / temperature).softmax(-1)
    for j, token in enumerate(draft_tokens.tolist()):
        q = torch.zeros_like(probs[j])
        if draft_probs is None:
            q[token] = 1.0
        else:
            q.copy_(draft_probs[j])
        if torch.rand((), generator=generator, dtype=torch.float64) * q[token] < probs[j, token]:
            continue
        residual = (probs[j] - q).clamp(min=0)
        return j, int(torch.multinomial(residual, 1, generator=generator))
    return num_drafts, int(torch.multinomial(probs[-1], 1, generator=generator))
