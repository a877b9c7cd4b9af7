"""Room past the target's context length, for requests that run up to it.

The last step of such a request (and, under overlap, one more) has its rows 3K positions past the length it had
(`row_budget`). SGLang leaves 4 positions and half a reservation in its table of KV slots, enough for its own EAGLE up
to K = 7; further entries would be those of the next request.
"""

from __future__ import annotations

from sglang_backend import NAME


def widen_kv_slot_table(extra: int) -> int:
    """Leave a whole reservation past the context length, AFTER get_req_to_token_extra_context_len."""
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode
    from sglang.srt.runtime_context import get_spec

    if get_spec().speculative_algorithm != NAME:
        return extra
    return max(extra, get_alloc_reserve_per_decode() + get_alloc_page_size() - 1)


def reserve_nothing(reserved: int) -> int:
    """Leave all of the context to the user, AFTER compute_num_reserved_tokens: what is reserved lies past it."""
    from sglang.srt.runtime_context import get_spec

    return 0 if get_spec().speculative_algorithm == NAME else reserved
