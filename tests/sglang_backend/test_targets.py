"""Targets of other families, tiny and random: PEAGLE's greedy output is what transformers generates."""

from __future__ import annotations

import pytest
import torch
from byte_models import AUX_IDS, VOCAB, save_random_head, save_tokenizer
from conftest import mixed_prompts
from reference import check_drafts
from servers import ask_all, peagle, serve
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, Qwen3Config, Qwen3MoeConfig

pytestmark = pytest.mark.slow

LENGTH = 24
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 259, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 4}
OPTIONS = {"gpt-oss": ["--page-size", "16"]}  # its sliding layers have a KV pool of their own, paged on GPUs
FAMILIES = {
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **EXPERTS, norm_topk_prob=True),
    "gpt-oss": GptOssConfig(**SHAPE, **SLIDING, num_local_experts=4, num_experts_per_tok=2),
    "gemma3": Gemma3TextConfig(**{**SHAPE, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}, **SLIDING),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_output_is_the_targets_own(tmp_path, family):
    torch.manual_seed(4)
    target = AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32).eval()
    for name, parameter in target.named_parameters():
        if name.endswith("sinks"):  # SGLang keeps them in bf16
            parameter.data = torch.randn_like(parameter).mul(2).bfloat16().float()
    target.save_pretrained(tmp_path / "target")
    save_tokenizer(tmp_path / "target")
    drafter = save_random_head(tmp_path / "head", aux_layer_ids=AUX_IDS, num_depths=3)
    target.generation_config.eos_token_id = None
    prompts = mixed_prompts()[:6]  # up to 150 tokens: far beyond the sliding window
    prompts += [[(5 * i) % 250 for i in range(length)] for length in (47, 48)]  # mask rows begin a page of their own
    expected = [
        target.generate(torch.tensor([p]), max_new_tokens=LENGTH, do_sample=False)[0, len(p) :].tolist()
        for p in prompts
    ]
    records = tmp_path / "records"
    arguments = [*peagle(tmp_path / "head"), *OPTIONS.get(family, [])]
    with serve(tmp_path / "target", tmp_path / "log", *arguments, PEAGLE_RECORD_DIR=str(records)) as server:
        for concurrency in (1, 4):
            answers = ask_all(server, prompts, LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == expected
        counters = server.counters()
        assert counters["decode_drafter_passes"] == counters["decode_steps"] > 0
        assert counters["prefills_without_masks"] == 0
        assert len(check_drafts(server, records, target, drafter, prompts, 3, 8, concurrency=4)) > 20
