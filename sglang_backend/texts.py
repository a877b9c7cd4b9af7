"""The text of every request on the device, for a head with a correction: SGLang keeps KV slots there, not tokens.

The drafter's row at position i reads token s_{i+1} and writes its keys to the KV slot of position i, and SGLang's radix
cache shares a slot between requests only where both tokens are equal. So one table from slot to token, written in every
pass of the drafter, holds the text of all requests, cached prefixes included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.told import NONE, REACH


class Texts:
    def __init__(self, num_slots: int, req_to_token: Tensor) -> None:
        """Make the table. num_slots: KV slots, padding included; req_to_token: int32[requests, positions], SGLang's."""
        self.req_to_token = req_to_token
        self.token_behind = torch.zeros(num_slots, dtype=torch.int64, device=req_to_token.device)
        self.back = torch.arange(-min(REACH, req_to_token.shape[1]), 0, device=req_to_token.device)

    def write(self, slots: Tensor, token_ids: Tensor) -> None:
        """Note what the rows of a pass read. slots, token_ids: int[rows]. What mask rows note lies past every text."""
        self.token_behind[slots] = token_ids.long()

    def read(self, requests: Tensor, lengths: Tensor, longest: int = REACH) -> Tensor:
        """Return the last tokens of requests, int64[bs, W], right-aligned with NONE in front; 0 < W <= REACH.

        requests: int[bs], rows of SGLang's table; lengths: int[bs], positions that the drafter has seen of each;
        longest: no less than any of these, so that no more than needed is read.
        """
        positions = lengths[:, None] + self.back[-longest:]
        slots = self.req_to_token[requests[:, None], positions.clamp(min=0)]
        return torch.where(positions >= 0, self.token_behind[slots], NONE)
