"""`--check vllm`: what it asks of vLLM and makes of the answer; once with the real one, where it is installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_drafter, tiny_target

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.generate import speculate
from tools.convert import vllm_check
from tools.convert.__main__ import main
from tools.judges.vllm import Case, Served, Step, is_installed

# A head dimension that vLLM's CPU attention knows.
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}


@pytest.fixture
def models(tmp_path) -> Path:
    """target/ and a random head/ for it, without a tokenizer."""
    tiny_target(dtype=torch.float32, **SIZES, initializer_range=0.1).save_pretrained(tmp_path / "target")
    save_drafter(tiny_drafter(tiny_config(**SIZES), scale=1.5), tmp_path / "head", torch.float32)
    return tmp_path


def convert(models: Path, to: str = "vllm") -> int:
    options = ["--to", to, "--target", str(models / "target"), "--check", "vllm"]
    return main([str(models / "head"), str(models / "result"), *options])


def reference(cases: list[Case]) -> list[Served]:
    """What vLLM would answer if it drafted as we do."""
    target = tiny_target(dtype=torch.float32, **SIZES, initializer_range=0.1)
    answers = []
    for case in cases:
        drafter = tiny_drafter(tiny_config(**SIZES), dtype=torch.float32, scale=1.5)
        if case.head:
            drafter = load_drafter(case.head, torch.float32, target)
        runs = [
            speculate(target, drafter, torch.tensor(p), case.num_draft_tokens, case.max_new_tokens)
            for p in case.prompts
        ]
        steps = [[Step([], drafts) for drafts in run.draft_tokens] for run in runs]
        answers.append(Served([run.output_ids for run in runs], steps, 10, 5))
    return answers


@pytest.fixture
def installed(monkeypatch) -> None:
    monkeypatch.setattr(vllm_check, "is_installed", lambda: True)


def test_a_judge_that_agrees(models, installed, monkeypatch, capsys):
    monkeypatch.setattr(vllm_check, "serve_in_vllm", reference)
    assert convert(models) == 0
    assert "output equal to no speculation, " in (out := capsys.readouterr().out)
    assert "acceptance length 1.50" in out
    assert (models / "result").is_dir()


def test_other_output_and_other_drafts_leave_nothing_behind(models, installed, monkeypatch, capsys):
    def other_output(cases):
        plain, served = reference(cases)
        return [plain, replace(served, outputs=[[0], *served.outputs[1:]])]

    def other_drafts(cases):
        plain, served = reference(cases)
        changed = [[Step([], [(t + 1) % 61 for t in step.drafts]) for step in steps] for steps in served.steps]
        return [plain, replace(served, steps=changed)]

    for judge, message in ((other_output, "is not its output without one"), (other_drafts, "0 of its ")):
        monkeypatch.setattr(vllm_check, "serve_in_vllm", judge)
        assert convert(models) == 1
        assert message in capsys.readouterr().err
        assert sorted(p.name for p in models.iterdir()) == ["head", "target"]


def test_without_vllm_or_a_target_nothing_is_started(models, monkeypatch, capsys):
    monkeypatch.chdir(models)
    assert convert(models) == 1
    assert "run `make .venv-vllm/.installed` first" in capsys.readouterr().err
    assert main([str(models / "head"), str(models / "result"), "--to", "vllm", "--check", "vllm"]) == 1
    assert "give it with --target" in capsys.readouterr().err
    assert sorted(p.name for p in models.iterdir()) == ["head", "target"]


@pytest.mark.slow
@pytest.mark.judge
@pytest.mark.skipif(not is_installed(), reason="vLLM is installed by `make test-vllm` only")
@pytest.mark.parametrize("to", ["vllm", "speculators"])
@pytest.mark.parametrize("changes", [{"qk_norm": True}, {"norm_before_residual": True, "draft_vocab_size": 30}])
def test_real_vllm_drafts_as_we_do(models, capsys, to, changes):
    save_drafter(tiny_drafter(tiny_config(**SIZES, **changes), scale=1.5), models / "head", torch.float32)
    assert convert(models, to) == 0
    assert "drafts our reference loop's" in capsys.readouterr().out
