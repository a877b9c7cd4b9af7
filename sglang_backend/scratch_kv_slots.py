"""KV slots for the mask rows of a prefill pass, where SGLang has reserved nothing past the prompt.

They live for one drafter pass: allocated, entered into the requests' rows, and freed again right after it. In decode
steps no scratch is needed: the scheduler's reservation covers the mask rows (row_budget.reserved_kv_slots).
"""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.common import evict_from_tree_cache
from torch import Tensor


class ScratchKVSlots:
    """KV slots of positions length..length+masks-1 of each finished prompt; use as a context manager.

    `.available` is False when the pool has too few that are free: the pass then goes without masks.
    """

    def __init__(self, batch, allocator, req_to_token: Tensor, lengths: list[int], masks: list[int]) -> None:
        # Beside a pool for sliding-window layers (gpt-oss), the drafter's slots are those of the full layers: it has no
        # window, and SGLang's allocator for both gives no whole pages.
        self.allocator = getattr(allocator, "full_attn_allocator", allocator)
        self.page_size = allocator.page_size
        self.tree_cache = batch.tree_cache
        self.req_to_token = req_to_token
        self.requests = batch.req_pool_indices_cpu.tolist()
        self.lengths, self.masks = lengths, masks
        self.taken: Tensor | None = None
        self.available = self._allocate()

    def _own(self, length: int, masks: int) -> int:
        """How many of the positions fall into the request's last, partly filled page: those are its own already."""
        return min(masks, -length % self.page_size)

    def _allocate(self) -> bool:
        extra = [m - self._own(n, m) for n, m in zip(self.lengths, self.masks, strict=True)]
        pages = [-(-e // self.page_size) for e in extra]
        if sum(pages):
            # After a while the pool is full of cached prefixes; they give way, running requests do not.
            evict_from_tree_cache(self.tree_cache, sum(pages) * self.page_size)
            self.taken = self.allocator.alloc(sum(pages) * self.page_size)
            if self.taken is None:
                return False
        start = 0
        for request, length, masks, more, page_count in zip(
            self.requests, self.lengths, self.masks, extra, pages, strict=True
        ):
            own = masks - more
            row = self.req_to_token[request]
            if own:
                row[length : length + own] = row[length - 1] + 1 + torch.arange(own, device=row.device)
            if more and self.taken is not None:
                row[length + own : length + masks] = self.taken[start : start + more]
            start += page_count * self.page_size
        return True

    def __enter__(self) -> ScratchKVSlots:
        return self

    def __exit__(self, *_: object) -> None:
        if self.taken is not None:
            self.allocator.free_segment(self.taken, start_pos=0)  # whole pages: unlike `free`, asks the device nothing
