"""The drafter's KV cache in SGLang's memory budget.

SGLang takes a layer of the drafter to be as large as one of the target. A head has its own key-value heads and, with
`--speculative-draft-kv-cache-dtype`, its own dtype: a larger one would not fit the memory left after the target's pool.
"""

from __future__ import annotations

import torch

from sglang_backend import NAME


def _bytes_per_layer(model_config, tp_size: int, dtype: torch.dtype) -> int:
    return model_config.get_num_kv_heads(tp_size) * (model_config.head_dim + model_config.v_head_dim) * dtype.itemsize


def count_drafter_layers(kvc) -> None:
    """Count the drafter's layers in layers of the target, BEFORE create_memory_pool_configurator. Idempotent."""
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
    from sglang.srt.runtime_context import get_model, get_parallel, get_spec

    spec, sizes = get_spec(), kvc.spec_aux_config
    if spec.speculative_algorithm != NAME or kvc.is_draft_worker or kvc.use_mla_backend:
        return
    head, tp_size = sizes.draft_model_config, get_parallel().attn_tp_size
    _, dtype = configure_kv_cache_dtype(
        server_args_kv_cache_dtype=get_model().kv_cache_dtype,
        speculative_draft_kv_cache_dtype=spec.speculative_draft_kv_cache_dtype,
        model=None,
        model_dtype=head.dtype,
        is_draft_worker=True,
        is_dflash=False,
        speculative_draft_attention_backend=spec.speculative_draft_attention_backend,
    )
    drafter = sizes.draft_kv_num_layers * _bytes_per_layer(head, tp_size, dtype)
    sizes.eagle_draft_num_layers = -(-drafter // _bytes_per_layer(kvc.model_config, tp_size, kvc.kv_cache_dtype))
