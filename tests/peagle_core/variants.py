"""Drafters of every kind: named changes to the tiny config, and a hypothesis strategy over all valid small configs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from peagle_core.config import PEagleConfig

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one_layer": {"num_hidden_layers": 1},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "qk_norm": {"qk_norm": True},
    "attention_bias": {"attention_bias": True},
    "llama3_rope": {"rope_parameters": LLAMA3},
    "linear_rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "head_dim": {"head_dim": 10, "num_attention_heads": 4, "num_key_value_heads": 2},
    "target_width": {"target_hidden_size": 14},
    "draft_vocab": {"draft_vocab_size": 20},
    "everything": {
        "norm_before_residual": True,
        "fc_norm": True,
        "qk_norm": True,
        "attention_bias": True,
        "rope_parameters": LLAMA3,
        "head_dim": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "target_hidden_size": 14,
        "num_hidden_layers": 3,
        "rms_norm_eps": 1e-3,
    },
}


@st.composite
def configs(draw) -> PEagleConfig:
    """Any valid config of small size."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    vocab = draw(st.integers(4, 40))
    norm = draw(st.sampled_from(["none", "norm_before_fc", "fc_norm"]))
    layers = draw(st.lists(st.integers(0, 40), min_size=3, max_size=3, unique=True).map(sorted))
    rope = draw(st.sampled_from([
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
        {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
    ]))  # fmt: skip
    return PEagleConfig(
        vocab_size=vocab,
        draft_vocab_size=draw(st.integers(1, vocab)),
        hidden_size=kv_heads * group * draw(st.integers(1, 4)),
        target_hidden_size=draw(st.sampled_from([4, 6, 10])),
        intermediate_size=draw(st.integers(1, 12)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4, 6])),
        mask_token_id=draw(st.integers(0, vocab - 1)),
        aux_layer_ids=draw(st.sampled_from([None, tuple(layers)])),
        num_depths=draw(st.none() | st.integers(1, 12)),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        max_position_embeddings=draw(st.sampled_from([64, 4096])),
        rope_parameters=rope,
        attention_bias=draw(st.booleans()),
        norm_before_residual=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        target=draw(st.none() | st.just("org/target")),
        **({} if norm == "none" else {norm: True}),
    )
