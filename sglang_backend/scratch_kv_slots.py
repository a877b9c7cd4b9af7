"""KV slots for the mask rows of a prefill pass, where SGLang has reserved nothing past the prompt.

They live for one drafter pass: allocated, entered into the requests' rows, and freed again right after it. In decode
steps no scratch is needed: the scheduler's reservation covers the mask rows (row_budget.reserved_kv_slots).
"""

from __future__ import annotations

import numpy as np
import torch
from sglang.srt.mem_cache.common import evict_from_tree_cache
from sglang.srt.utils.common import async_h2d
from torch import Tensor

from sglang_backend.draft_inputs import spans


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
        """Return how many positions fall into the request's last, partly filled page: those are its own already."""
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
        if any(self.masks):
            self._enter(np.array(self.masks) - extra, np.array(extra), np.array(pages))
        return True

    def _enter(self, own: np.ndarray, extra: np.ndarray, pages: np.ndarray) -> None:
        """Enter the slots into the requests' rows of the table: a handful of launches for any number of requests.

        own, extra: positions of each request in its own last page, and in pages taken; pages: how many it has taken.
        """
        table = self.req_to_token.view(-1)
        first = np.array(self.requests) * self.req_to_token.shape[1] + np.array(self.lengths)  # position `length`
        request, i = spans(own)
        behind, j = spans(extra)
        columns = [
            first[request] + i,
            first[request] - 1,  # the last slot of the prompt: those behind it in the page follow
            i + 1,
            (first + own)[behind] + j,
            ((np.cumsum(pages) - pages) * self.page_size)[behind] + j,
        ]
        sent = async_h2d(np.concatenate(columns), dtype=torch.int64, device=table.device)  # type: ignore[arg-type]
        places, last, offset, more_places, taken = sent.split([len(column) for column in columns])
        if len(request):
            table[places] = table[last] + offset.to(table.dtype)
        if len(behind) and self.taken is not None:
            table[more_places] = self.taken[taken].to(table.dtype)

    def __enter__(self) -> ScratchKVSlots:
        return self

    def __exit__(self, *_: object) -> None:
        if self.taken is not None:
            self.allocator.free_segment(self.taken, start_pos=0)  # whole pages: unlike `free`, asks the device nothing
