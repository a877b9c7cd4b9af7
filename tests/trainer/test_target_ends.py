"""A target's embedding and head without its layers, and the digest that its states are known by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from peagle_core.errors import InputError
from trainer.config import load_config
from trainer.hidden_states.target_digest import target_digest
from trainer.target.load import embedding, load_ends, weight_bytes

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
TARGETS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "tied llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=4),
    "gpt-oss": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gemma3 with images": Gemma3Config(text_config=Gemma3TextConfig(**SIZES).to_dict(), vision_config=VISION),
}


def save(config: PretrainedConfig, directory: Path, **options) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(config).float()
    model.save_pretrained(directory, **options)
    return model


def run_of(target: Path):
    (target.parent / "data.txt").write_text("x")
    return load_config(None, [f"target={target}", f"data.train={target.parent / 'data.txt'}", "device=cpu"])


@pytest.mark.parametrize("name", TARGETS)
def test_the_ends_are_the_targets(tmp_path, name):
    whole = save(TARGETS[name], tmp_path / "target", max_shard_size="20KB")
    ends = load_ends(run_of(tmp_path / "target"))
    table, head = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight
    assert torch.equal(embedding(ends), table)
    assert torch.equal(ends.get_output_embeddings().weight, head)
    assert ends.config.get_text_config().num_hidden_layers == 8
    assert weight_bytes(ends) == table.nbytes * (1 if head is table else 2)


@pytest.mark.parametrize(("tied", "absent"), [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")])
def test_a_target_without_one_of_them_is_refused(tmp_path, tied, absent):
    """transformers would fill it with random numbers."""
    save(TARGETS["tied llama" if tied else "llama"], tmp_path / "target")
    path = tmp_path / "target" / "model.safetensors"
    tensors = load_file(path)
    del tensors[absent]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"its weights have no '{absent}'"):
        load_ends(run_of(tmp_path / "target"))


def test_a_copy_has_the_same_digest_however_it_is_divided(tmp_path):
    torch.manual_seed(5)
    save(TARGETS["llama"], tmp_path / "one")
    torch.manual_seed(5)
    save(TARGETS["llama"], tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert target_digest(str(tmp_path / "one")) == target_digest(str(tmp_path / "many"))


def one_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.5.mlp.up_proj.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def one_setting(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-4}))


@pytest.mark.parametrize("change", [one_weight, one_setting])
def test_another_model_has_another_digest(tmp_path, change):
    save(TARGETS["llama"], tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    assert target_digest(str(tmp_path / "one")) == target_digest(str(tmp_path / "other"))
    change(tmp_path / "other")
    assert target_digest(str(tmp_path / "one")) != target_digest(str(tmp_path / "other"))
