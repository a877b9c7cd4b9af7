"""`drafter.correction_rank` in the trainer: trained, resumed, measured, exported, given to a head that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from refusal import refused
from safetensors.torch import load_file
from tiny_run import run_options, stored
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from trainer.checkpoint.checkpoints import load_trained, newest_checkpoint
from trainer.config import RunConfig, load_config
from trainer.data.packing import pack
from trainer.evaluation.evaluate import held_out_text, prompts_of
from trainer.export.export import run_export
from trainer.train.assemble import open_run
from trainer.train.optimizer import make_optimizers
from trainer.train.run import run_train

RANK = "drafter.correction_rank=4"


@pytest.fixture(scope="module")
def options(target_dir, data_file, tmp_path_factory) -> list[str]:
    plain = run_options(target_dir, data_file, tmp_path_factory.mktemp("correction") / "run")
    return [*plain, f"data.heldout={data_file}", "drafter.draft_vocab_size=144", "optim.optimizer=muon", "mode=stream"]


@pytest.fixture(scope="module")
def finished(options) -> RunConfig:
    config = load_config(None, [*options, RANK])
    run_train(config)
    return config


def loss_of(run) -> float:
    return held_out_text(run.config, run.drafter, run.hidden_states, pack(run.inputs.heldout, 96))[0].loss


def test_it_learns_resumes_and_is_exported(finished, options, tmp_path, capsys):
    trained = load_trained(newest_checkpoint(finished.checkpoints))
    assert trained.correction.lm_head.weight.abs().min() > 0
    halves = load_config(None, [*options, RANK, f"output_dir={tmp_path / 'halves'}"])
    run_train(halves)
    newest_checkpoint(halves.checkpoints).rename(tmp_path / "the end")
    run_train(halves, resume=True)
    whole, resumed = (stored(newest_checkpoint(c.checkpoints)) for c in (finished, halves))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert any("correction" in name for name in whole)
    capsys.readouterr()
    head = run_export(finished, destination=tmp_path / "head", verify=True)
    assert capsys.readouterr().out.count("equal to the target's own") == 2
    assert json.loads((head / "config.json").read_text())["correction_rank"] == 4
    assert load_file(head / "model.safetensors")["correction.lm_head.weight"].shape == (144, 4)
    card = (head / "README.md").read_text()
    assert "| correction | rank 4 |" in card
    assert "With vLLM (which reads no correction: " in card


def test_without_it_nothing_speaks_of_it(options, tmp_path):
    config = load_config(None, [*options, f"output_dir={tmp_path / 'run'}", "optim.max_steps=1"])
    run_train(config)
    assert "correction" not in (config.output / "head" / "config.json").read_text()
    assert not [name for name in stored(newest_checkpoint(config.checkpoints)) if "correction" in name]


def test_its_head_is_none_of_muons(options):
    drafter = open_run(load_config(None, [*options, RANK])).drafter
    own = drafter.correction
    muon, adamw = make_optimizers(drafter, load_config(None, options).optim, torch.float32)
    decayed, plain = ({id(p) for p in group["params"]} for group in adamw.param_groups)
    assert {id(own.lm_head.weight), id(drafter.lm_head.weight)} == decayed
    assert {id(own.embed_norm.weight), id(drafter.embed_tokens.weight)} <= plain
    assert {id(own.gate_proj.weight), id(own.up_proj.weight)} <= {id(p) for p in muon.param_groups[0]["params"]}


def test_a_head_without_one_is_given_one_that_starts_at_zero(options, tmp_path, capsys):
    plain = load_config(None, [*options, f"output_dir={tmp_path / 'plain'}"])
    run_train(plain)
    head = plain.output / "head"
    ended = json.loads((plain.output / "metrics.json").read_text())["loss"]
    capsys.readouterr()
    config = load_config(None, [*options, RANK, f"drafter.init={head}", f"output_dir={tmp_path / 'on'}"])
    run = open_run(config)
    assert loss_of(run) == pytest.approx(ended, rel=1e-5)
    assert "a correction of rank 4, which the head has not, starts at zero" in capsys.readouterr().out
    again = open_run(config).drafter.correction
    assert torch.equal(run.drafter.correction.gate_proj.weight, again.gate_proj.weight)
    assert again.gate_proj.weight.std() > 0.01
    run_train(config)
    assert load_drafter(config.output / "head").correction.lm_head.weight.any()


def test_a_head_with_one_keeps_it(finished, target_dir, options, tmp_path, capsys):
    head = finished.output / "head"
    ended = json.loads((finished.output / "metrics.json").read_text())["loss"]
    run = open_run(load_config(None, [*options, f"drafter.init={head}"]))
    assert run.drafter.config.correction_rank == 4
    assert loss_of(run) == pytest.approx(ended, rel=1e-5)
    says = "another shape than drafter.correction_rank 8 (there: 4)"
    elsewhere = [f"output_dir={tmp_path / 'on'}", f"drafter.init={head}", "drafter.correction_rank=8"]
    refused(["train", *options, *elsewhere], 2, says, capsys)
    # A target with more ids than the head: what reads their embeddings is as it was.
    tuned = LlamaForCausalLM.from_pretrained(target_dir)
    tuned.resize_token_embeddings(291)
    for file in Path(target_dir).iterdir():
        (tmp_path / "tuned").mkdir(exist_ok=True)
        (tmp_path / "tuned" / file.name).write_bytes(file.read_bytes())
    tuned.save_pretrained(tmp_path / "tuned")
    grown = open_run(load_config(None, [*options, f"drafter.init={head}", f"target={tmp_path / 'tuned'}"])).drafter
    old = load_drafter(head).correction
    assert len(grown.embed_tokens.weight) == 291
    assert all(torch.equal(grown.correction.state_dict()[name], tensor) for name, tensor in old.state_dict().items())


def test_evaluation_drafts_with_it(finished):
    """What a correction drafts is what is counted: an untrained, large one changes the acceptance that is reported."""
    run = open_run(finished)
    prompts = prompts_of(run.inputs.to_answer, 2, finished.eval.prompt_tokens)
    from trainer.evaluation.evaluate import evaluate

    def measured() -> tuple[float, float]:
        found = evaluate(finished, run.inputs.target, run.drafter, run.hidden_states,
                         pack(run.inputs.heldout, 96), prompts, run.inputs.end_ids)  # fmt: skip
        return found.expected_accept_length, found.acceptance[0].accept_length

    run.drafter.load_state_dict(load_drafter(finished.output / "head").state_dict())
    before = measured()
    with torch.no_grad():
        run.drafter.correction.lm_head.weight.normal_(std=100)
    assert measured() != before
    assert measured()[0] < before[0]


def test_eagle3_has_no_use_for_it(options, capsys):
    refused(["train", *options, "algorithm=eagle3", RANK], 2, "it reads the draft before it anyway", capsys)
