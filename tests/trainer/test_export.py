"""What `export` leaves: weights with settings, data, metrics and a card; verified on request; nothing when refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from peagle_core.generate import Speculation
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.export import export
from trainer.export.export import greedy, run_export
from trainer.inputs import load_inputs
from trainer.train.run import run_train


@pytest.fixture(scope="module")
def finished(target_dir, data_file, tmp_path_factory):
    from tiny_run import run_options

    from trainer.config import load_config

    config = load_config(None, run_options(target_dir, data_file, tmp_path_factory.mktemp("finished") / "run"))
    run_train(config)
    return config


def test_everything_one_hands_on_lies_beside_the_weights(finished, tmp_path, capsys):
    directory = run_export(finished, destination=tmp_path / "new" / "head", verify=True)
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "model.safetensors", "run.yaml", "data.json", "metrics.json", "README.md"}
    assert capsys.readouterr().out.count("equal to the target's own") == 2
    assert yaml.safe_load((directory / "run.yaml").read_text())["drafter"]["num_depths"] == 3
    data = json.loads((directory / "data.json").read_text())
    assert (data["train"]["documents"], data["heldout"]["documents"]) == (39, 1)
    assert 0 < data["train"]["generated_tokens"] < data["train"]["tokens"]
    metrics = json.loads((directory / "metrics.json").read_text())
    card = (directory / "README.md").read_text()
    assert f"base_model: {finished.target}" in yaml.safe_dump(yaml.safe_load(card.split("---")[1]), width=1000)
    assert f"| 3 | {metrics['acceptance'][0]['accept_length']:.2f} |" in card
    along = metrics["acceptance_on_text"][0]
    assert along["prompts"] == 1 and f"1 held-out answers, whole: K = 3: {along['accept_length']:.2f}" in card
    assert f"| train | 39 | {data['train']['tokens']} |" in card
    assert "--speculative-algorithm PEAGLE" in card


@pytest.mark.parametrize("trained", [True, False])
def test_an_embedding_that_was_not_trained_is_left_to_the_target(finished, tmp_path, trained):
    config = finished.model_copy(update={"drafter": finished.drafter.model_copy(update={"train_embedding": trained})})
    directory = run_export(config, newest_checkpoint(finished.checkpoints), tmp_path / "head")
    assert ("embed_tokens.weight" in load_file(directory / "model.safetensors")) == trained
    target = load_inputs(finished).model
    assert len(load_drafter(directory, target=target).embed_tokens.weight) == len(target.get_input_embeddings().weight)


def test_metrics_of_another_step_are_not_passed_off_as_its_own(finished, tmp_path, capsys):
    older = min(finished.checkpoints.iterdir())
    assert older != newest_checkpoint(finished.checkpoints)
    directory = run_export(finished, older, tmp_path / "head")
    assert not (directory / "metrics.json").exists()
    assert "not measured" in (directory / "README.md").read_text()
    assert "another step" in capsys.readouterr().out


def test_an_evaluation_of_the_same_head_since_training_is_what_the_card_tells(finished, tmp_path):
    metrics = json.loads((finished.output / "metrics.json").read_text())
    report = finished.output / "eval.json"
    for head, told in ((metrics["head"], 7.5), ("another", metrics["loss"])):
        report.write_text(json.dumps({**metrics, "head": head, "step": None, "loss": 7.5}))
        found = json.loads((run_export(finished, destination=tmp_path / str(told)) / "metrics.json").read_text())
        assert (found["loss"], found["step"]) == (told, metrics["step"])
    report.unlink()


def test_a_head_that_fails_verification_never_appears(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "speculate", lambda *_, **__: Speculation([1, 2, 3], [1, 1], [[1], [2]]))
    with pytest.raises(InputError, match="prompt 1 has another output"):
        run_export(finished, destination=tmp_path / "head", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_below_float32_a_tie_broken_otherwise_is_told_with_its_size(finished, tmp_path, monkeypatch, capsys):
    def broken_tie(target, drafter, prompt, num_drafts, max_new_tokens, eos_token_id):
        own = greedy(target, prompt, max_new_tokens, eos_token_id)
        return Speculation([*own[:2], (own[2] + 1) % 100, *own[3:]], [1], [[1]])

    config = finished.model_copy(update={"target_dtype": "bfloat16"})
    monkeypatch.setattr(export, "speculate", broken_tie)
    assert run_export(config, destination=tmp_path / "head", verify=True).is_dir()
    told = re.findall(r"own for (\d+) tokens; the bfloat16 logits of .* are (\S+) apart", capsys.readouterr().out)
    assert [int(equal) for equal, _ in told] == [2, 2]
    assert all(float(gap) > 0 for _, gap in told)


def test_greedy_ends_with_the_end_token_or_the_limit(finished):
    target = load_inputs(finished).target
    prompt = torch.tensor([0, 70, 80])
    tokens = greedy(target, prompt, 6, None)
    assert len(tokens) == 6
    assert greedy(target, prompt, 6, tokens[0]) == tokens[:1]
