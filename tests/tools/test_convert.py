"""Conversions: every path there and back is bit-equal, and what a format implies is written out or said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_target
from tiny_heads import (
    change_config,
    change_tensors,
    random_drafter,
    same_files,
    write_aws,
    write_flat,
    write_nemo,
    write_training_checkpoint,
)
from torch import Tensor
from variants import configs

from peagle_core.checkpoint import load_drafter, read_tensors, save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.tensors import weight_files
from tools.convert import write
from tools.convert.__main__ import main

FORMATS = ("peagle", "vllm", "speculators")


def convert(source: Path, destination: Path, to: str, *options: str) -> Path:
    assert main([str(source), str(destination), "--to", to, *map(str, options)]) == 0
    return destination


def stored_tensors_of(head: Path) -> list[Tensor]:
    return [tensor for file in weight_files(head) for tensor in load_file(file).values()]


def assert_same_weights(a: Path, b: Path) -> None:
    """Names, dtypes, bits, of everything a drafter reads."""
    ours, theirs = (read_tensors(path, PEagleConfig.from_pretrained(path)) for path in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@settings(max_examples=40)
@given(
    configs(),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from(FORMATS),
    st.sampled_from(FORMATS),
    st.sampled_from([write.SHARD_BYTES, 700]),
)
def test_there_and_back_is_bit_equal(tmp_path_factory, config, dtype, to, via, shard_bytes):
    """a -> b -> a for every pair of formats, sharded or not; the files themselves are the same."""
    directory = tmp_path_factory.mktemp("heads")
    if "speculators" in (to, via) and config.num_depths is None:
        config = config.replace(num_depths=5)  # that format always says one
    save_drafter(random_drafter(config, dtype), directory / "ours", dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "SHARD_BYTES", shard_bytes)
        a = convert(directory / "ours", directory / "a", to)
        b = convert(a, directory / "b", via)
        back = convert(b, directory / "back", to)
        assert same_files(a, back)
        assert_same_weights(directory / "ours", b)
        assert PEagleConfig.from_pretrained(b) == config
        is_sharded = (a / "model.safetensors.index.json").is_file()
        assert is_sharded == (sum(t.nbytes for t in stored_tensors_of(a)) > shard_bytes)
        if to != "speculators" and not is_sharded:
            assert same_files(directory / "ours", a)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("write_source", [write_aws, write_nemo, write_training_checkpoint])
def test_foreign_heads_keep_their_weights(tmp_path, write_source, to):
    source = write_source(tmp_path / "source")
    result = convert(source, tmp_path / "result", to, "--check")
    expected = random_drafter(tiny_config(draft_vocab_size=20))
    tensors = load_file(result / "model.safetensors")
    assert set(tensors) == {name for name, _ in expected.named_parameters()} | {"d2t"} | (
        {"t2d"} if to == "speculators" else set()
    )
    wanted = torch.float32 if write_source is write_training_checkpoint else torch.bfloat16
    for name, parameter in load_drafter(result).named_parameters():
        assert parameter.dtype == wanted, name
    if write_source is not write_training_checkpoint:
        for name, parameter in expected.named_parameters():
            assert torch.equal(tensors[name], parameter), name


def test_a_training_checkpoint_becomes_what_its_run_exports(tmp_path):
    checkpoint = write_training_checkpoint(tmp_path / "step-00000003")
    config = tiny_config(draft_vocab_size=20)
    save_drafter(random_drafter(config, torch.float32), tmp_path / "exported")
    assert same_files(
        tmp_path / "exported", convert(checkpoint, tmp_path / "head", "peagle", "--dtype", "bfloat16", "--check")
    )


def test_what_a_format_implies_is_written_out(tmp_path, capsys):
    """AWS's config says neither norm_before_residual nor mask_token_id; EAGLE-3's default of the former is true."""
    aws = write_aws(tmp_path / "aws")
    nested = json.loads((convert(aws, tmp_path / "nested", "speculators") / "config.json").read_text())
    assert nested["norm_before_residual"] is False
    assert nested["mask_token_id"] == 60
    assert nested["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    assert "model_type" not in nested
    assert nested["transformer_layer_config"]["model_type"] == "llama"
    assert nested["speculators_config"]["proposal_methods"] == [
        {"proposal_type": "greedy", "speculative_tokens": 5}  # AWS's heads do not say K
    ]
    t2d = load_file(tmp_path / "nested" / "model.safetensors")["t2d"]
    assert t2d.dtype == torch.bool
    assert t2d.nonzero().flatten().tolist() == [3 * i for i in range(20)]
    said = capsys.readouterr()
    for part in (
        "norm_before_residual: false, now written",
        "mask_hidden: shape [72] -> [1, 1, 72]",
        "tensors renamed, such as midlayer.",
    ):
        assert part in said.out
    assert "does not say its K: written as 5" in said.err


def test_q_and_k_norms_are_qwen3_to_vllm_and_speculators(tmp_path):
    config = tiny_config(qk_norm=True, draft_vocab_size=20)
    source = write_flat(tmp_path / "source", config)
    raw = json.loads((source / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"]) == ("qwen3", ["Eagle3Qwen3ForCausalLM"])
    nested = json.loads((convert(source, tmp_path / "nested", "speculators") / "config.json").read_text())
    assert nested["transformer_layer_config"]["model_type"] == "qwen3"
    assert PEagleConfig.from_pretrained(tmp_path / "nested").qk_norm


def test_a_sliding_window_is_carried_over_and_warned_about(tmp_path, capsys):
    source = change_config(
        write_flat(tmp_path / "a"), layer_types=["sliding_attention", "full_attention"], sliding_window=128
    )
    nested = convert(source, tmp_path / "b", "speculators")
    raw = json.loads((convert(nested, tmp_path / "c", "peagle") / "config.json").read_text())
    assert raw["layer_types"] == ["sliding_attention", "full_attention"]
    assert raw["sliding_window"] == 128
    assert "attends to the last 128 tokens in 1 of 2 layers" in capsys.readouterr().err


def test_keys_nobody_reads_are_named(tmp_path, capsys):
    convert(write_nemo(tmp_path / "nemo"), tmp_path / "head", "vllm")
    out = capsys.readouterr().out
    assert "NeMo, 25 tensors in 1 files" in out
    assert "down_sample_ratio = 0.8: not carried over" in out
    assert "transformers_version" not in out


def test_the_verifiers_architectures_come_from_the_target_or_the_source(tmp_path, target, capsys):
    def verifier(head: Path) -> dict:
        return json.loads((head / "config.json").read_text())["speculators_config"]["verifier"]

    source = write_flat(tmp_path / "source", tiny_config(target="org/target"))
    unknown = convert(source, tmp_path / "unknown", "speculators")
    assert verifier(unknown) == {"name_or_path": "org/target", "architectures": []}
    known = convert(source, tmp_path / "known", "speculators", "--target", target)
    assert verifier(known)["architectures"] == ["LlamaForCausalLM"]
    assert verifier(convert(known, tmp_path / "again", "speculators")) == verifier(known)
    convert(known, tmp_path / "flat", "vllm")
    assert "the verifier's architectures ['LlamaForCausalLM']: not carried over" in capsys.readouterr().out


def test_fc_norm_to_speculators_warns_that_vllm_drops_it(tmp_path, capsys):
    convert(write_flat(tmp_path / "a", tiny_config(fc_norm=True)), tmp_path / "b", "speculators")
    assert "vLLM 0.32 does not read fc_norm" in capsys.readouterr().err
    assert PEagleConfig.from_pretrained(tmp_path / "b").fc_norm


def test_aux_ids_that_count_outputs_are_shifted(tmp_path, capsys):
    convert(write_flat(tmp_path / "a"), tmp_path / "b", "vllm", "--aux-ids", "output")
    assert PEagleConfig.from_pretrained(tmp_path / "b").aux_layer_ids == (3, 5, 6)
    assert "[2, 4, 5], outputs of layers -> [3, 5, 6]" in capsys.readouterr().out


@pytest.fixture
def target(tmp_path) -> Path:
    """Eight layers, positions up to 256, bfloat16."""
    tiny_target().to(torch.bfloat16).save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def with_the_targets_weights(tensors: dict, target: Path) -> None:
    theirs = load_file(target / "model.safetensors")
    tensors["embed_tokens.weight"] = theirs["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = theirs["lm_head.weight"].clone()


def test_weights_of_the_target_are_left_out_only_when_bit_equal_and_asked(tmp_path, target, capsys):
    source = write_flat(tmp_path / "source", tiny_config())
    change_tensors(source, lambda t: with_the_targets_weights(t, target))
    kept = load_file(convert(source, tmp_path / "kept", "vllm") / "model.safetensors")
    assert {"embed_tokens.weight", "lm_head.weight"} <= set(kept)
    left = convert(source, tmp_path / "left", "vllm", "--target", target, "--check")
    assert not {"embed_tokens.weight", "lm_head.weight"} & set(load_file(left / "model.safetensors"))
    assert "largest difference of logits 0 " in capsys.readouterr().out

    def flip_a_sign_of_zero(tensors: dict) -> None:
        tensors["embed_tokens.weight"][0, 0] = -0.0

    theirs = load_file(target / "model.safetensors")
    theirs["model.embed_tokens.weight"][0, 0] = 0.0
    save_file(theirs, target / "model.safetensors", metadata={"format": "pt"})
    change_tensors(source, flip_a_sign_of_zero)
    result = load_file(convert(source, tmp_path / "zero", "vllm", "--target", target) / "model.safetensors")
    assert "embed_tokens.weight" in result
    assert "lm_head.weight" not in result


def test_a_head_that_never_had_its_own_embedding_stays_without(tmp_path, capsys):
    source = write_flat(tmp_path / "source", tiny_config())
    change_tensors(source, lambda t: (t.pop("embed_tokens.weight"), t.pop("lm_head.weight")))
    result = convert(source, tmp_path / "result", "speculators", "--check")
    assert not {"embed_tokens.weight", "lm_head.weight"} & set(load_file(result / "model.safetensors"))
    assert "largest difference of logits 0 " in capsys.readouterr().out


def test_a_tied_target_shares_its_embedding_as_the_head(tmp_path):
    model = tiny_target(tie_word_embeddings=True).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tied")
    source = write_flat(tmp_path / "source", tiny_config())
    change_tensors(source, lambda t: t.update({"lm_head.weight": model.get_input_embeddings().weight.detach().clone()}))
    result = convert(source, tmp_path / "result", "vllm", "--target", tmp_path / "tied")
    assert "lm_head.weight" not in load_file(result / "model.safetensors")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "truncate": False},
        {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_max_position_embeddings_is_raised_and_the_rotary_embedding_stays(tmp_path, target, capsys, rope):
    if rope["rope_type"] == "llama3":
        rope = rope | {"original_max_position_embeddings": 16}
    source = write_flat(tmp_path / "source", tiny_config(max_position_embeddings=64, rope_parameters=rope))
    result = convert(source, tmp_path / "result", "vllm", "--target", target, "--check")
    assert PEagleConfig.from_pretrained(result).max_position_embeddings == 256
    old, new = load_drafter(source).rotary, load_drafter(result).rotary
    assert torch.equal(old.inv_freq, new.inv_freq)
    assert old.attention_scaling == new.attention_scaling
    said = capsys.readouterr()
    assert "max_position_embeddings 64 -> 256" in said.err
    assert "largest difference of logits 0 " in said.out


def test_dynamic_rotary_scaling_keeps_its_length(tmp_path, target, capsys):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    source = write_flat(tmp_path / "source", tiny_config(max_position_embeddings=64, rope_parameters=rope))
    convert(source, tmp_path / "result", "vllm", "--target", target)
    assert PEagleConfig.from_pretrained(tmp_path / "result").max_position_embeddings == 64
    assert "cannot be raised with dynamic rotary scaling" in capsys.readouterr().err


def test_default_aux_ids_are_written_out_for_a_target(tmp_path, target):
    source = write_flat(tmp_path / "source", tiny_config(aux_layer_ids=None))
    convert(source, tmp_path / "result", "vllm", "--target", target)
    assert PEagleConfig.from_pretrained(tmp_path / "result").aux_layer_ids == (2, 4, 5)


def test_the_check_measures_what_a_cast_costs(tmp_path, capsys):
    source = write_flat(tmp_path / "source", dtype=torch.float32)
    result = convert(source, tmp_path / "result", "peagle", "--dtype", "bfloat16", "--check")
    assert load_drafter(result).fc.weight.dtype == torch.bfloat16
    assert json.loads((result / "config.json").read_text())["torch_dtype"] == "bfloat16"
    out = capsys.readouterr().out
    difference = float(out.split("largest difference of logits ")[1].split()[0])
    assert 0 < difference < 10
    assert "24 tensors cast, float32 -> bfloat16" in out


def test_the_check_finds_a_result_that_computes_something_else(tmp_path, monkeypatch, capsys):
    source = write_flat(tmp_path / "source")
    monkeypatch.setattr(
        write, "_cast", lambda _file, name, tensor, _dtype: -tensor if name == "norm.weight" else tensor
    )
    assert main([str(source), str(tmp_path / "result"), "--to", "vllm", "--check"]) == 1
    assert "computes other logits" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
