"""Heads as people have them serve unchanged: every spelling and option, drafts equal to the reference loop's.

Weights are random, so acceptance is not the point here: the drafts themselves are compared, logit by logit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from byte_models import VOCAB, drafter_config
from prompts import mixed_prompts
from reference import check_drafts
from safetensors.torch import load_file, save_file
from servers import beyond, peagle, serve
from tiny import tiny_drafter
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter, save_drafter

pytestmark = pytest.mark.slow

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def save_head(directory: Path, drop: tuple[str, ...] = (), spell=lambda name: name, **changes) -> dict:
    """A random head in the flat format, without the tensors `drop`, its tensor names respelt -> its config.json."""
    save_drafter(tiny_drafter(drafter_config(**changes), dtype=torch.float32), directory, torch.float32)
    path = directory / "model.safetensors"
    save_file({spell(name): t for name, t in load_file(path).items() if name not in drop}, path)
    return json.loads((directory / "config.json").read_text())


def aws(directory: Path) -> None:
    """The flat format with nothing of ours in it: mask id under `ptd_token_id`, no K; own embedding and head."""
    config = save_head(directory, fc_norm=True, norm_before_residual=True, attention_bias=True)
    for ours in ("num_depths", "qk_norm", "mask_token_id", "target_name_or_path", "norm_before_fc"):
        del config[ours]
    (directory / "config.json").write_text(json.dumps(config))


def speculators(directory: Path) -> None:
    """Nested config without a top-level model_type; embedding and head are the target's; scaled rope."""
    flat = save_head(
        directory, ("embed_tokens.weight", "lm_head.weight"), norm_before_fc=True, rope_parameters=LLAMA3_ROPE
    )
    layer_keys = (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_parameters",
        "attention_bias",
    )  # fmt: skip
    nested = {
        "architectures": ["PEagleDraftModel"],
        "speculators_model_type": "peagle",
        "mask_token_id": flat["mask_token_id"],
        "draft_vocab_size": VOCAB,
        "target_hidden_size": 64,
        "norm_before_residual": False,
        "norm_before_fc": True,
        "eagle_aux_hidden_state_layer_ids": flat["eagle_config"]["eagle_aux_hidden_state_layer_ids"],
        "transformer_layer_config": {key: flat[key] for key in layer_keys},
        "speculators_config": {
            "algorithm": "peagle",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "target", "architectures": ["LlamaForCausalLM"]},
        },
    }
    (directory / "config.json").write_text(json.dumps(nested))


def nemo(directory: Path) -> None:
    """`model.` prefixes, `midlayer.` for the first layer, q/k norms, a draft vocabulary, mask id in `pard_token`."""

    def spell(name: str) -> str:
        if name in ("d2t", "lm_head.weight"):
            return name
        return "model." + name.replace("layers.0.", "midlayer.")

    config = save_head(directory, spell=spell, qk_norm=True, draft_vocab_size=VOCAB // 2)
    config["pard_token"] = config.pop("mask_token_id")
    del config["ptd_token_id"]
    (directory / "config.json").write_text(json.dumps(config))


def corrected(directory: Path) -> None:
    """A correction so large that it decides the drafts, and a draft vocabulary."""
    save_head(directory, draft_vocab_size=VOCAB // 2, correction_rank=8)


@pytest.mark.parametrize("write_head", beyond([aws, speculators, nemo, corrected], nemo), ids=lambda f: f.__name__)
def test_it_serves_unchanged(models, expected, tmp_path, write_head):
    write_head(tmp_path / "head")
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    drafter = load_drafter(tmp_path / "head", target=target)
    prompts = mixed_prompts()[:6]
    with serve(
        models / "target", tmp_path / "log", *peagle(tmp_path / "head"), PEAGLE_RECORD_DIR=str(tmp_path / "records")
    ) as server:
        compared = check_drafts(server, tmp_path / "records", target, drafter, prompts, 5, concurrency=3)
        assert len(compared) > 50
        for prompt in prompts:
            assert server.generate(prompt, 30)["output_ids"] == expected[tuple(prompt)][:30]
        counters = server.counters()
        assert counters["decode_drafter_passes"] == counters["decode_steps"] > 0


@pytest.mark.matrix
def test_two_ranks_correct_alike(models, expected, tmp_path):
    """Tensor parallelism over gloo: embedding and head are split, the correction is whole on each rank."""
    corrected(tmp_path / "head")
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    drafter = load_drafter(tmp_path / "head", target=target)
    arguments = [*peagle(tmp_path / "head"), "--tp-size", "2"]
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1", "PEAGLE_RECORD_DIR": str(tmp_path / "records")}
    prompts = mixed_prompts()[:4]
    with serve(models / "target", tmp_path / "log", *arguments, **cores) as server:
        compared = check_drafts(server, tmp_path / "records", target, drafter, prompts, 5, concurrency=2)
        assert len(compared) > 30
        for prompt in prompts:
            assert server.generate(prompt, 30)["output_ids"] == expected[tuple(prompt)][:30]
