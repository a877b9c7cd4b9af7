"""A SGLang plugin for tests: a KV pool that checks where it is written.

1. No pass, of the target or the drafter, writes to a slot that is free: only slot 0, the padding sink, is nobody's.
2. The rows of a PEAGLE decode step write only what the scheduler has reserved for their own request.

One line of JSON per decode step goes to $POOL_PROBE, and one per violation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

allocators = []


def register() -> None:
    """Entry point `sglang.srt.plugins`."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    base = "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.__init__"
    HookRegistry.register(base, lambda _, allocator, *a, **k: allocators.append(allocator), HookType.AFTER)
    pool = "sglang.srt.mem_cache.memory_pool.MHATokenToKVPool.set_kv_buffer"
    HookRegistry.register(pool, check_write, HookType.BEFORE)
    worker = "sglang.srt.speculative.eagle_worker_v2.EagleDraftWorker.__init__"
    HookRegistry.register(worker, watch_decode_steps, HookType.AFTER)


def report(**line) -> None:
    with Path(os.environ["POOL_PROBE"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def check_write(pool, layer, slots, *_args, **_kwargs) -> None:
    for allocator in allocators:
        pages = slots[slots != 0] // allocator.page_size
        stray = pages[torch.isin(pages, free_pages(allocator))]
        if len(stray):
            report(violation="a free slot", pages=stray.tolist())


def free_pages(allocator) -> torch.Tensor:
    if allocator.page_size > 1:
        return allocator.get_all_free_pages()
    return torch.cat([allocator.free_pages, allocator.release_pages])


def watch_decode_steps(_result, worker, *_args, **_kwargs) -> None:
    cls = type(worker)
    if cls.__name__ != "PEagleDraftWorker" or hasattr(cls, "unchecked"):
        return
    cls.unchecked = cls._draft_extend_for_decode

    def checked(self, batch, result, **kwargs):
        starts = batch.seq_lens.tolist()
        self.unchecked(batch, result, **kwargs)
        table = self.req_to_token_pool.req_to_token
        for i, slots in enumerate(batch.out_cache_loc.view(len(starts), -1)):
            reserved = table[batch.req_pool_indices[i], starts[i] : batch.reqs[i].kv.kv_allocated_len]
            written = slots[slots != 0]
            if not torch.isin(written, reserved).all():
                report(violation="outside the reservation", slots=written.tolist(), reserved=reserved.tolist())
            report(rows=len(written), reserved=len(reserved))

    cls._draft_extend_for_decode = checked
