"""LoRA adapters on the target: each request gets the output of its own merged target, in one batch with others."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from prompts import TRAINED, mixed_prompts
from safetensors.torch import save_file
from servers import peagle, plugin_path, serve
from transformers import LlamaForCausalLM

pytestmark = pytest.mark.slow

LENGTH, RANK, ALPHA = 24, 4, 8
PROJECTIONS = ("q_proj", "v_proj", "o_proj")


def save_adapter(directory: Path, target: LlamaForCausalLM, seed: int) -> LlamaForCausalLM:
    """A random adapter in peft's format, strong enough to change the text -> the target with it merged in."""
    torch.manual_seed(seed)
    directory.mkdir()
    tensors = {}
    for name, module in target.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            a, b = torch.randn(RANK, module.in_features) * 0.3, torch.randn(module.out_features, RANK) * 0.3
            tensors |= {f"base_model.model.{name}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
            module.weight.data += ALPHA / RANK * b @ a
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(PROJECTIONS), "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return target


def test_adapters_in_one_batch(models, tmp_path, expected):
    merged = {
        name: save_adapter(tmp_path / name, LlamaForCausalLM.from_pretrained(models / "target").eval(), seed)
        for seed, name in enumerate(("one", "two"))
    }
    cases = [(name, prompt) for prompt in mixed_prompts()[1:4] for name in (None, "one", "two")]
    outputs = []
    for name, prompt in cases:
        if name is None:
            outputs.append(expected[tuple(prompt)][:LENGTH])
            continue
        merged[name].generation_config.eos_token_id = None
        text = merged[name].generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False)
        outputs.append(text[0, len(prompt) :].tolist())
    assert outputs[0] != outputs[1] != outputs[2]
    paths = [f"{name}={tmp_path / name}" for name in merged]
    options = ["--lora-paths", *paths, "--lora-backend", "torch_native", "--max-loras-per-batch", "3"]
    environment = {"PYTHONPATH": plugin_path(tmp_path, "unpinned")}
    arguments = [*peagle(models / "overfit"), *options]
    with serve(models / "target", tmp_path / "log", *arguments, **environment) as server:

        def ask(case: tuple[str | None, list[int]]) -> list[int]:
            params = {"max_new_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
            body = {"input_ids": case[1], "sampling_params": params, "lora_path": case[0]}
            return server.post("/generate", body)["output_ids"]

        for concurrency in (1, 5):
            with ThreadPoolExecutor(concurrency) as pool:
                assert list(pool.map(ask, cases)) == outputs
        assert server.generate(TRAINED[0], LENGTH)["meta_info"]["spec_accept_length"] > 5
