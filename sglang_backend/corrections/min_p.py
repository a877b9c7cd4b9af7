"""min-p under speculation: SGLang 0.5.23 applies temperature, top-k and top-p in verification, but not min-p.

Its sampler keeps the tokens whose probability, after top-k and top-p, is at least min_p times the largest. Here the
same is done to the target's probabilities on their way into the two sampling verifiers; PEAGLE's worker installs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# The verifiers that EAGLE verification calls with `target_probs`, as sglang.srt.speculative.eagle_utils knows them.
VERIFIERS = ("tree_speculative_sampling_target_only", "chain_speculative_sampling_triton")


def keep_min_p(probs: Tensor, min_ps: Tensor) -> Tensor:
    """probs: [bs, rows, V], each row a distribution; min_ps: [bs], 0 for none -> renormalised over the kept tokens."""
    border = probs.amax(-1, keepdim=True) * min_ps[:, None, None]
    kept = torch.where(probs >= border, probs, 0.0)
    return kept / kept.sum(-1, keepdim=True)


class MinP:
    """Carries the min-p of the batch in verification to the verifiers, which only see probabilities."""

    def __init__(self) -> None:
        self.min_ps: Tensor | None = None
        from sglang.srt.speculative import eagle_utils

        for name in VERIFIERS:
            setattr(eagle_utils, name, self._filtering(getattr(eagle_utils, name)))

    @contextmanager
    def in_force(self, sampling_info) -> Iterator[None]:
        needed = sampling_info is not None and sampling_info.need_min_p_sampling
        self.min_ps = sampling_info.min_ps if needed else None
        try:
            yield
        finally:
            self.min_ps = None

    def _filtering(self, verifier: Callable) -> Callable:
        def verify(*, target_probs: Tensor, **rest):
            if self.min_ps is not None:
                target_probs = keep_min_p(target_probs, self.min_ps)
            return verifier(target_probs=target_probs, **rest)

        return verify
