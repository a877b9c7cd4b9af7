"""Room past the target's context length, for requests that run up to it.

The last step of such a request (and, under overlap, one more) has its rows 3K positions past the length it had: K+1
verified tokens that SGLang's length does not count yet, then 2K rows. SGLang leaves 4 positions and half a reservation
in its table of slots, enough for its own EAGLE up to K = 7; further entries would be those of the next request.
"""

from __future__ import annotations

from sglang_backend.algorithm import NAME
from sglang_backend.corrections.adaptive import max_num_draft_tokens


def positions_past_the_limit(spec) -> int:
    """spec: SGLang's speculative settings, at their largest K."""
    return 3 * max_num_draft_tokens(spec)


def widen_slot_table(extra: int) -> int:
    """AFTER get_req_to_token_extra_context_len: a whole reservation past the context length."""
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode
    from sglang.srt.runtime_context import get_spec

    if get_spec().speculative_algorithm != NAME:
        return extra
    return max(extra, get_alloc_reserve_per_decode() + get_alloc_page_size() - 1)


def lengthen_drafter_context(draft_runner, spec) -> None:
    """The drafter's attention backends size their page tables and indices by its context length."""
    draft_runner.model_config.context_len += positions_past_the_limit(spec)


def install() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.mem_cache.allocation_sizing.get_req_to_token_extra_context_len"
    HookRegistry.register(target, widen_slot_table, HookType.AFTER)
