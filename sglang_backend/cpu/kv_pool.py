"""SGLang's KV pool without the Triton kernel that moves KV between slots: only tree drafts need it, chains never."""

from __future__ import annotations

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class CpuKVPool(MHATokenToKVPool):
    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
