"""One head's config.json in the two published formats, flat and nested, and the PEagleConfig that both describe."""

from __future__ import annotations

from typing import Any

from peagle_core.config import PEagleConfig

AUX = "eagle_aux_hidden_state_layer_ids"
# The minimal flat config that vLLM ran (docs/checkpoint.md), in this project's tiny sizes.
FLAT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "vocab_size": 61, "draft_vocab_size": 30,
    "hidden_size": 24, "target_hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256, "rope_theta": 5000.0, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": False, "norm_before_residual": True, "ptd_token_id": 60,
    "eagle_config": {"use_aux_hidden_state": True, AUX: [2, 4, 5]},
}  # fmt: skip
LAYER_KEYS = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
              "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps",
              "max_position_embeddings", "rope_theta", "attention_bias")  # fmt: skip
NESTED: dict[str, Any] = {
    "architectures": ["PEagleDraftModel"], "speculators_model_type": "peagle", "mask_token_id": 60,
    "draft_vocab_size": 30, "target_hidden_size": 20, "norm_before_residual": True, AUX: [2, 4, 5],
    "transformer_layer_config": {key: FLAT[key] for key in LAYER_KEYS},
    "speculators_config": {
        "algorithm": "peagle", "default_proposal_method": "greedy",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
        "verifier": {"name_or_path": "org/target", "architectures": ["LlamaForCausalLM"]},
    },
}  # fmt: skip
EXPECTED = PEagleConfig(
    vocab_size=61, draft_vocab_size=30, hidden_size=24, target_hidden_size=20, intermediate_size=40,
    num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6,
    max_position_embeddings=256, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    norm_before_residual=True, mask_token_id=60, aux_layer_ids=(2, 4, 5),
)  # fmt: skip
