"""Targets whose weights or KV are rounded: gpt-oss with experts in MXFP4, as it is published, and a KV cache in fp8."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from byte_models import AUX_IDS, save_random_head, save_tokenizer
from conftest import LENGTH, PHRASE, feature_requests, mixed_prompts
from safetensors.torch import save_file
from servers import ask_all, peagle, serve, write_config
from test_targets import FAMILIES
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, PreTrainedModel

pytestmark = pytest.mark.slow


def generate(target: PreTrainedModel, prompt: list[int], length: int, **options) -> list[int]:
    target.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    return target.generate(ids, max_new_tokens=length, do_sample=False, **options)[0, len(prompt) :].tolist()


def save_in_mxfp4(target: PreTrainedModel, directory: Path) -> None:
    """As OpenAI publishes it. The target itself keeps the rounded experts."""
    from triton_kernels.numerics_details.mxfp import downcast_to_mxfp_torch, upcast_from_mxfp_torch

    target.save_pretrained(directory)
    save_tokenizer(directory)
    tensors = {name: t.detach() for name, t in target.state_dict().items()}
    for name, parameter in target.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            continue
        weight = tensors.pop(name).transpose(1, 2).contiguous()
        packed, scales = downcast_to_mxfp_torch(weight, torch.uint8, axis=-1)
        tensors |= {f"{name}_blocks": packed.view(*scales.shape, 16), f"{name}_scales": scales}
        parameter.data = upcast_from_mxfp_torch(packed, scales, weight.dtype, axis=-1).transpose(1, 2).contiguous()
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")
    write_config(directory, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")


def test_a_target_in_mxfp4(tmp_path):
    """Against transformers with the same rounded experts, for as many tokens as bf16 lets them agree."""
    torch.manual_seed(4)
    target = AutoModelForCausalLM.from_config(FAMILIES["gpt-oss"], dtype=torch.float32).eval()
    save_in_mxfp4(target, tmp_path / "target")
    save_random_head(tmp_path / "head", aux_layer_ids=AUX_IDS, num_depths=3)
    prompts = mixed_prompts()
    expected = [generate(target.bfloat16(), p, 24) for p in prompts]
    with serve(tmp_path / "target", tmp_path / "log", *peagle(tmp_path / "head")) as server:
        answers = [a["output_ids"] for a in ask_all(server, prompts, 24, 3)]
        counters = server.counters()
    agree = [[x == y for x, y in zip(a, e, strict=True)] for a, e in zip(answers, expected, strict=True)]
    print("mxfp4", [sum(map(bool, a)) for a in agree], [a.index(False) if False in a else 24 for a in agree])
    assert counters["decode_drafter_passes"] == counters["decode_steps"] > 0


class RoundedCache(DynamicCache):
    def update(self, key_states, value_states, *args, **kwargs):
        key_states, value_states = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (key_states, value_states))
        return super().update(key_states, value_states, *args, **kwargs)


def test_a_kv_cache_in_fp8(models, tmp_path):
    """Against transformers with a cache rounded in the same way. Between a verify and a decode pass the last bits
    differ, and with them, now and then, what a key is rounded to; hence not all requests.
    """
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    rounded = [generate(target, p, LENGTH, past_key_values=RoundedCache()) for p in mixed_prompts()]
    options = ["--kv-cache-dtype", "fp8_e4m3"]
    with serve(models / "target", tmp_path / "log", *peagle(models / "overfit"), *options) as server:
        for concurrency in (1, 5):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            equal = [a["output_ids"] == r for a, r in zip(answers, rounded, strict=True)]
            assert sum(equal) >= 8, equal
        # The drafter's own KV is rounded too; it still knows what it was taught, where a grammar forces it.
        answer = server.post("/generate", feature_requests(answers[0]["output_ids"])["a phrase"])
        assert PHRASE.startswith(answer["text"][:30]) and answer["meta_info"]["spec_accept_length"] > 3.5
