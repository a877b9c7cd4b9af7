"""min-p under speculation: SGLang 0.5.23 applies temperature, top-k and top-p in verification, but not min-p.

Its sampler keeps the tokens whose probability, after top-k and top-p, is at least min_p times the largest. Here the
same is done to the target's probabilities on their way into the two sampling verifiers. Those see probabilities alone,
so the min-p of the batch waits beside them while a batch is verified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

_MIN_PS: ContextVar[Tensor | None] = ContextVar("min_ps", default=None)  # [bs], of the batch in verification


def keep_min_p(probs: Tensor, min_ps: Tensor) -> Tensor:
    """Return probs renormalised over the kept tokens.

    probs: [bs, rows, V], each row a distribution; min_ps: [bs], 0 for none.
    """
    border = probs.amax(-1, keepdim=True) * min_ps[:, None, None]
    kept = torch.where(probs >= border, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


def verify_with_min_p(verify: Callable, batch, *args, **kwargs):
    """Put the batch's min-p in force AROUND run_eagle_verify."""
    info = batch.sampling_info
    needed = info is not None and info.need_min_p_sampling
    token = _MIN_PS.set(info.min_ps if needed else None)
    try:
        return verify(batch, *args, **kwargs)
    finally:
        _MIN_PS.reset(token)


def filter_target(verifier: Callable, *, target_probs: Tensor, **rest):
    """Filter the target's probabilities AROUND a sampling verifier by the min-p in force."""
    min_ps = _MIN_PS.get()
    return verifier(target_probs=target_probs if min_ps is None else keep_min_p(target_probs, min_ps), **rest)
