"""Tiny random targets of other families than Llama."""

from __future__ import annotations

import torch
from byte_models import VOCAB
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 259, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 4}
FAMILIES = {
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, norm_topk_prob=True),
    "gpt-oss": GptOssConfig(**SHAPE, **SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "gemma3": Gemma3TextConfig(**{**SHAPE, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}, **SLIDING),
}


def random_target(family: str, **changes) -> PreTrainedModel:
    """changes: of its config."""
    torch.manual_seed(4)
    config = FAMILIES[family].__class__(**{**FAMILIES[family].to_dict(), **changes})
    target = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in target.named_parameters():
        if name.endswith("sinks"):  # SGLang keeps them in bf16
            parameter.data = torch.randn_like(parameter).mul(2).bfloat16().float()
    target.generation_config.eos_token_id = None  # as the servers' ignore_eos
    return target
