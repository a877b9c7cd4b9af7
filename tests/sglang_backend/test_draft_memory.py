"""SGLang's memory budget counts the drafter's KV cache at its own size."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")


from sglang_backend import NAME
from sglang_backend.corrections import draft_memory


def geometry(kv_heads: int, head_dim: int) -> SimpleNamespace:
    return SimpleNamespace(
        head_dim=head_dim, v_head_dim=head_dim, dtype=torch.bfloat16, get_num_kv_heads=lambda *_: kv_heads
    )


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "target_dtype", "draft_dtype", "layers"),
    [
        (2, 64, "auto", None, 4),  # as the target's
        (8, 64, "auto", None, 16),  # no grouped queries
        (2, 32, "auto", None, 2),
        (2, 65, "auto", None, 5),  # a part of a layer counts whole
        (2, 64, "fp8_e4m3", None, 4),  # the drafter's follows the target's
        (2, 64, "fp8_e4m3", "bf16", 8),
    ],
)
def test_a_head_counts_at_its_own_size(monkeypatch, kv_heads, head_dim, target_dtype, draft_dtype, layers):
    spec = SimpleNamespace(
        speculative_algorithm=NAME,
        speculative_draft_kv_cache_dtype=draft_dtype,
        speculative_draft_attention_backend=None,
    )
    context = "sglang.srt.runtime_context"
    monkeypatch.setattr(f"{context}.get_spec", lambda: spec)
    monkeypatch.setattr(f"{context}.get_model", lambda: SimpleNamespace(kv_cache_dtype=target_dtype))
    monkeypatch.setattr(f"{context}.get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
    sizes = SimpleNamespace(
        draft_model_config=geometry(kv_heads, head_dim), draft_kv_num_layers=4, eagle_draft_num_layers=4
    )
    kvc = SimpleNamespace(
        spec_aux_config=sizes,
        is_draft_worker=False,
        use_mla_backend=False,
        model_config=geometry(2, 64),
        kv_cache_dtype=torch.bfloat16 if target_dtype == "auto" else torch.float8_e4m3fn,
    )
    for _ in range(2):  # SGLang asks twice
        draft_memory.count_drafter_layers(kvc)
        assert sizes.eagle_draft_num_layers == layers
