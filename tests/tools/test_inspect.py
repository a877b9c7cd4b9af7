"""What inspect says of a head: the facts are right, every problem is found, the exit code tells."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_target
from tiny_heads import (
    change_config,
    change_tensors,
    write_aws,
    write_flat,
    write_nemo,
    write_training_checkpoint,
)
from tiny_run import make_tokenizer

from tools.convert.__main__ import main as convert
from tools.inspect.__main__ import main

AUX = "eagle_aux_hidden_state_layer_ids"


def inspect(capsys, directory: Path, *options: object) -> tuple[int, dict[str, str], list[str], str]:
    """Exit code, facts, problems, all of the output."""
    capsys.readouterr()
    code = main([str(directory), *map(str, options)])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if not line.startswith((" ", "problem: ")) and "  " in line]
    facts = {name: value.strip() for name, _, value in (line.partition("  ") for line in lines)}
    problems = [line.removeprefix("problem: ") for line in out.splitlines() if line.startswith("problem: ")]
    return code, facts, problems, out


def command(out: str, engine: str) -> list[str]:
    return shlex.split(out.split(f"{engine}:\n")[1].splitlines()[0])


def test_a_sound_head(tmp_path, capsys):
    head = write_flat(tmp_path / "head")
    code, facts, problems, out = inspect(capsys, head)
    assert (code, problems) == (0, [])
    assert "no problems found" in out
    assert facts["format"] == "flat"
    assert facts["architecture"] == "LlamaForCausalLMEagle3"
    assert facts["K"] == "trained for 4 drafts"
    assert facts["aux layer ids"] == "[2, 4, 5] entering a layer (vLLM), [1, 3, 4] leaving a layer (SGLang)"
    assert facts["mask token id"] == "60"
    sglang, vllm = command(out, "SGLang"), command(out, "vLLM")
    assert sglang[:3] == ["python", "-m", "sglang.launch_server"]
    assert sglang[-4:] == ["--speculative-draft-model-path", str(head), "--speculative-num-steps", "4"]
    assert json.loads(vllm[-1]) == {
        "method": "eagle3", "model": str(head), "num_speculative_tokens": 4, "parallel_drafting": True
    }  # fmt: skip


def test_parameters_and_bytes_are_counted(tmp_path, capsys):
    """By hand, H = 24, I = 40, 3 heads and 1 key/value head of 8, V = 61, V_d = 20, in bfloat16."""
    _, facts, _, _ = inspect(capsys, write_flat(tmp_path / "head"))
    layer = 24 * 8 * 2 + 2 * 24 * 24 + 3 * 24 * 40 + 2 * 24  # k and v, q and o, MLP, norms
    first = layer + 24 * 8 * 2 + 24 * 24 + 24  # q, k and v twice as wide, hidden_norm
    per_pass = layer + first + 24 * 72 + 24 + 20 * 24
    assert facts["parameters"] == f"{per_pass + 72 + 61 * 24:,}, {2 * (per_pass + 72 + 61 * 24) / 1e3:.2f} kB in BF16"
    assert facts["read per drafter pass"].startswith(f"{2 * per_pass / 1e3:.2f} kB: all layers, fc, norms and lm_head")
    assert "a row of 48 bytes per token" in facts["read per drafter pass"]


def test_every_format_is_told_and_what_vllm_would_refuse(tmp_path, capsys):
    aws = write_aws(tmp_path / "aws")
    code, facts, _, out = inspect(capsys, aws)
    assert (code, facts["format"], facts["K"]) == (0, "flat", "not written")
    assert facts["unused tensors"] == "t2d"
    assert command(out, "vLLM")[0] == "vllm"
    assert convert([str(aws), str(tmp_path / "nested"), "--to", "speculators"]) == 0
    code, facts, _, out = inspect(capsys, tmp_path / "nested")
    assert (code, facts["format"], facts["architecture"]) == (0, "speculators", "PEagleDraftModel")
    assert command(out, "vLLM")[0] == "vllm"
    code, facts, _, out = inspect(capsys, write_nemo(tmp_path / "nemo"))
    assert (code, facts["format"]) == (0, "NeMo")
    assert "not as it is (tensor names start with 'model.'; architecture LlamaEagle3DraftModel is not" in out
    code, facts, _, out = inspect(capsys, write_training_checkpoint(tmp_path / "step-1"))
    assert (code, facts["format"]) == (0, "training checkpoint")
    assert out.count("not as it is (it is a training checkpoint): peagle convert") == 2


def test_every_problem_is_found_at_once(tmp_path, capsys):
    def damage(t: dict) -> None:
        t["fc.weight"][0, 0] = float("nan")
        t["lm_head.weight"] = t["lm_head.weight"][:, :20].contiguous()
        t["extra"] = torch.ones(2)
        del t["norm.weight"], t["layers.1.mlp.up_proj.weight"]
        t["d2t"].fill_(60)

    head = change_tensors(write_flat(tmp_path / "head"), damage)
    change_config(head, pard_token=7, eagle_config={AUX: [2, 2, 4]})
    code, facts, problems, _ = inspect(capsys, head)
    assert code == 1
    expected = (
        "contradict each other", "'fc.weight' has values that are not finite", "'lm_head.weight' has shape (20, 20)",
        "'extra' belongs to no", "'norm.weight' is missing", "'layers.1.mlp.up_proj.weight' is missing",
        "'d2t' is no one-to-one map", "distinct and ascending",
    )  # fmt: skip
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == len(expected)
    assert facts["aux layer ids"] == facts["mask token id"] == "wrong, see below"


def test_a_truncated_file_and_a_hopeless_config(tmp_path, capsys):
    head = write_flat(tmp_path / "head")
    (head / "model.safetensors").write_bytes((head / "model.safetensors").read_bytes()[:-9])
    code, _, problems, _ = inspect(capsys, head)
    assert code == 1
    assert "unreadable safetensors file" in problems[0]
    code, facts, problems, _ = inspect(capsys, change_config(head, hidden_size=None))
    assert (code, facts["format"]) == (1, "flat")
    assert any("key 'hidden_size' is missing" in problem for problem in problems)


@pytest.mark.parametrize("head", ["absent", "empty"])
def test_what_is_no_head_ends_in_one_sentence(tmp_path, capsys, head):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / head)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) == 1


def test_against_its_target(tmp_path, capsys):
    target, tokenizer = tmp_path / "target", make_tokenizer()
    vocab = len(tokenizer)
    tiny_target(vocab_size=vocab, bos_token_id=0, eos_token_id=1, pad_token_id=1).save_pretrained(target)
    tokenizer.save_pretrained(target)
    good = write_flat(tmp_path / "good", tiny_config(vocab_size=vocab, mask_token_id=4))
    code, facts, _, out = inspect(capsys, good, "--target", target)
    assert (code, facts["mask token id"]) == (0, "4, which no text contains")
    assert command(out, "SGLang")[4] == str(target)
    ordinary = write_flat(tmp_path / "ordinary", tiny_config(vocab_size=vocab, mask_token_id=100))
    code, facts, _, _ = inspect(capsys, ordinary, "--target", target)
    assert (code, facts["mask token id"].endswith("), which a text may contain")) == (0, True)
    bad = tiny_config(
        vocab_size=vocab, mask_token_id=1, target_hidden_size=20, aux_layer_ids=(2, 4, 9), max_position_embeddings=64
    )
    code, _, problems, _ = inspect(capsys, write_flat(tmp_path / "bad", bad), "--target", target)
    assert code == 1
    for part in ("mask token id 1 is the token", "target_hidden_size is 20", "aux ids [2, 4, 9]", "64 is below the"):
        assert any(part in problem for problem in problems), part
    assert len(problems) == 4


def test_q_and_k_norms_under_a_llama_class_are_no_head_for_vllm(tmp_path, capsys):
    head = write_flat(tmp_path / "head", tiny_config(qk_norm=True))
    assert command(inspect(capsys, head)[3], "vLLM")[0] == "vllm"
    change_config(head, model_type="llama", architectures=["LlamaForCausalLMEagle3"])
    assert "architecture LlamaForCausalLMEagle3 is not Eagle3Qwen3ForCausalLM" in inspect(capsys, head)[3]


def test_an_eagle3_head_is_served_by_the_engines_own_eagle3(tmp_path, capsys):
    config = tiny_config(num_hidden_layers=1, mask_token_id=None)
    code, facts, problems, out = inspect(capsys, write_flat(tmp_path / "head", config))
    assert (code, problems) == (0, [])
    assert facts["mask token id"] == "none: an EAGLE-3 head, one draft after the other"
    assert facts["aux layer ids"] == "[2, 4, 5] entering a layer (vLLM), [1, 3, 4] leaving a layer (SGLang)"
    assert command(out, "SGLang")[-8:] == [
        "--speculative-draft-model-path", str(tmp_path / "head"), "--speculative-num-steps", "4",
        "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "5",
    ]  # fmt: skip
    assert "EAGLE3" in command(out, "SGLang")
    assert json.loads(command(out, "vLLM")[-1])["parallel_drafting"] is False
    _, _, _, out = inspect(capsys, write_flat(tmp_path / "other", config.replace(norm_before_residual=True)))
    assert "no: its EAGLE3 does not read norm_before_residual" in out
    _, _, _, out = inspect(capsys, write_training_checkpoint(tmp_path / "step-1", config))
    assert out.count("peagle export") == 2
    assert convert([str(tmp_path / "head"), str(tmp_path / "new"), "--to", "speculators"]) == 1
    assert "is an EAGLE-3 head" in capsys.readouterr().err


def test_a_correction_is_named_and_kept_from_vllm(tmp_path, capsys):
    head = write_flat(tmp_path / "head", tiny_config(draft_vocab_size=20, correction_rank=3))
    code, facts, problems, out = inspect(capsys, head)
    assert (code, problems) == (0, [])
    assert facts["correction"] == "rank 3, by which each draft knows those before it"
    assert facts["read per drafter pass"].endswith("; 1.96 kB of the correction per draft")
    assert "it does not read the correction" in out.split("vLLM:\n")[1]
    assert command(out, "SGLang")[3] == "--model-path"
