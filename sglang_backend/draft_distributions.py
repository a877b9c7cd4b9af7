"""The distributions that sampled drafts were drawn from, kept from the pass that drew them to their verification.

SGLang relays them with the drafts, in a buffer made at the first step, after the KV pool has taken the memory. Here
they stay in one buffer, a place for each row of SGLang's table of requests, made before the KV pool is sized: memory is
reckoned with, and a batch writes and reads its own places once. Greedy requests never need a place filled.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DraftDistributions:
    """q of the K drafts of every request, over the target's vocabulary: float32[requests, K, V] on `device`."""

    def __init__(self, requests: int, num_drafts: int, vocab_size: int, device: torch.device | str) -> None:
        self.probs = torch.zeros(requests, num_drafts, vocab_size, dtype=torch.float32, device=device)

    def write(self, requests: Tensor, probs: Tensor, draft_to_target: Tensor | None) -> None:
        """Enter what the next drafts of these requests were drawn from.

        requests: int64[bs], rows of SGLang's table; probs: float32[bs, k, V_d], k <= K; draft_to_target: int64[V_d],
        target ids of the draft vocabulary, None where they are 0..V_d-1. All else of a place becomes 0.
        """
        k, size = probs.shape[1:]
        if probs.shape[1:] == self.probs.shape[1:] and draft_to_target is None:
            self.probs.index_copy_(0, requests, probs)
            return
        self.probs.index_fill_(0, requests, 0)
        slots = torch.arange(k, device=probs.device)
        columns = torch.arange(size, device=probs.device) if draft_to_target is None else draft_to_target
        self.probs[requests[:, None, None], slots[:, None], columns] = probs

    def be_certain(self, requests: Tensor, drafts: Tensor, outright: Tensor) -> None:
        """Give drafts that were not drawn, and whose q was written as 0, the probability 1.

        requests: int64[bs]; drafts: int64[bs, k]; outright: bool[bs, k], which of them.
        """
        place = requests[:, None], torch.arange(drafts.shape[1], device=drafts.device), drafts
        self.probs[place] = torch.where(outright, 1.0, self.probs[place])

    def read(self, requests: Tensor, drafts: Tensor, greedy: Tensor | None) -> Tensor:
        """Return float32[bs, k, V], what the drafts int64[bs, k] of these requests are verified with.

        greedy: bool[bs], requests whose drafts are argmaxes, None where there are none: their q is certain of the
        draft, whatever their places hold, for nothing is written while a whole batch is greedy.
        """
        probs = self.probs[requests, : drafts.shape[1]]
        if greedy is None:
            return probs
        certain = greedy[:, None, None].expand(-1, drafts.shape[1], 1).to(probs.dtype)
        return probs.masked_fill_(greedy[:, None, None], 0).scatter_add_(2, drafts[..., None], certain)
