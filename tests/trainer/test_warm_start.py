"""A run that trains on from a head: it begins where the head ended, says what it took, and resumes without the head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from refusal import refused
from safetensors.torch import load_file, save_file
from tiny_run import assert_same_weights, run_options, stored
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.config import PEagleConfig
from peagle_core.config_formats import speculators_config_dict
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.config import load_config
from trainer.data.packing import pack
from trainer.evaluation.evaluate import held_out_text
from trainer.train.assemble import open_run
from trainer.train.run import run_train

WITHOUT_SHAPE = ("drafter.num_hidden_layers", "drafter.num_depths")


@pytest.fixture(scope="module")
def trained(target_dir, data_file, tmp_path_factory) -> Path:
    """The output directory of a finished run: a head of two layers for half of the vocabulary."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = [*run_options(target_dir, data_file, folder), f"data.heldout={data_file}", "drafter.num_hidden_layers=2"]
    run_train(load_config(None, [*options, "drafter.draft_vocab_size=144", "drafter.qk_norm=true", "optim.lr=3e-2"]))
    return folder


@pytest.fixture
def options(target_dir, data_file, tmp_path):
    """Settings of a run that leave the drafter's shape to the head."""
    plain = run_options(target_dir, data_file, tmp_path / "run")
    return [o for o in plain if not o.startswith(WITHOUT_SHAPE)] + [f"data.heldout={data_file}"]


def loss_at_start(options, init: Path, *more: str) -> float:
    run = open_run(load_config(None, [*options, f"drafter.init={init}", *more]))
    assert run.state.step == 0
    return held_out_text(run.config, run.drafter, run.hidden_states, pack(run.inputs.heldout, 96))[0].loss


def as_speculators(head: Path, to: Path) -> Path:
    """The head in speculators' format, with a leftover as its trainer writes it."""
    to.mkdir()
    config, tensors = PEagleConfig.from_pretrained(head), load_file(head / "model.safetensors")
    (to / "config.json").write_text(json.dumps(speculators_config_dict(config, "float32", ("LlamaForCausalLM",))))
    save_file({**tensors, "t2d": torch.zeros(config.vocab_size, dtype=torch.bool)}, to / "model.safetensors")
    return to


@pytest.mark.parametrize("form", ["ours", "speculators", "checkpoint"])
def test_it_begins_where_the_head_ended(trained, options, tmp_path, capsys, form):
    ended = json.loads((trained / "metrics.json").read_text())["loss"]
    source = {"ours": lambda: trained / "head", "checkpoint": lambda: newest_checkpoint(trained / "checkpoints"),
              "speculators": lambda: as_speculators(trained / "head", tmp_path / "speculators")}[form]()  # fmt: skip
    assert loss_at_start(options, source) == pytest.approx(ended, rel=1e-5)
    said = capsys.readouterr().out
    assert f"drafter.init {source}: " in said and "tensors taken" in said
    assert ("not taken: t2d" in said) == (form == "speculators")


def test_what_a_head_lacks_comes_from_the_target(trained, target_dir, data_file, options, tmp_path, capsys):
    bare = shutil.copytree(trained / "head", tmp_path / "bare")
    tensors = load_file(bare / "model.safetensors")
    del tensors["embed_tokens.weight"]
    save_file(tensors, bare / "model.safetensors")
    run = open_run(load_config(None, [*options, f"drafter.init={bare}"]))
    assert torch.equal(run.drafter.embed_tokens.weight, run.inputs.target.get_input_embeddings().weight)
    assert "embed_tokens.weight from the target" in capsys.readouterr().out


def test_a_fine_tuned_target_with_more_ids(trained, target_dir, options, tmp_path, capsys):
    target = LlamaForCausalLM.from_pretrained(target_dir)
    target.resize_token_embeddings(291)
    shutil.copytree(target_dir, tmp_path / "tuned")
    target.save_pretrained(tmp_path / "tuned")
    run = open_run(load_config(None, [*options, f"drafter.init={trained / 'head'}", f"target={tmp_path / 'tuned'}"]))
    head = load_drafter(trained / "head")
    assert torch.equal(run.drafter.embed_tokens.weight[:288], head.embed_tokens.weight)
    assert torch.equal(run.drafter.embed_tokens.weight[288:], run.inputs.target.get_input_embeddings().weight[288:])
    assert torch.equal(run.drafter.d2t, head.d2t)
    assert "ids 288 to 290 start from the target's rows" in capsys.readouterr().out


def test_another_mask_token_keeps_what_was_learned_of_it(trained, options, capsys):
    old = PEagleConfig.from_pretrained(trained / "head").mask_token_id
    run = open_run(load_config(None, [*options, f"drafter.init={trained / 'head'}", "drafter.mask_token_id=200"]))
    assert old != 200 == run.drafter.config.mask_token_id
    assert torch.equal(run.drafter.embed_tokens.weight[200], load_drafter(trained / "head").embed_tokens.weight[old])
    assert f"mask token 200, with the embedding of the head's {old}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "code", "says"),
    [
        ("drafter.num_hidden_layers=1", 2, "another shape than drafter.num_hidden_layers 1 (there: 2)"),
        ("drafter.draft_vocab_size=100", 2, "drafter.draft_vocab_size 100 (there: 144)"),
        ("drafter.draft_vocab_size=288", 2, "drafter.draft_vocab_size 288 (there: 144)"),
        ("drafter.qk_norm=false", 2, "drafter.qk_norm False (there: True)"),
        ("algorithm=eagle3", 2, "algorithm eagle3 trains EAGLE-3 heads, and "),
        ("drafter.init=/nowhere", 1, "/nowhere: no such directory"),
    ],
)
def test_what_contradicts_the_head_is_refused(trained, options, tmp_path, capsys, override, code, says):
    refused(["train", *options, f"drafter.init={trained / 'head'}", override], code, says, capsys)
    assert not (tmp_path / "run").exists()


def test_a_head_for_another_width_is_refused_with_sizes(trained, options, tmp_path, capsys):
    other = shutil.copytree(trained / "head", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "target_hidden_size": 48}))
    says = "was made for a target of hidden size 48 and 288 ids, "
    refused(["train", *options, f"drafter.init={other}"], 1, says, capsys)


def test_a_resumed_run_needs_the_head_no_more(trained, options, tmp_path):
    head = shutil.copytree(trained / "head", tmp_path / "head")
    whole = load_config(None, [*options, f"drafter.init={head}", f"output_dir={tmp_path / 'whole'}"])
    run_train(whole)
    first = load_config(None, [*options, f"drafter.init={head}"])
    run_train(first)
    shutil.rmtree(head)
    newest = newest_checkpoint(first.checkpoints)
    shutil.rmtree(newest)  # it goes on from step 4
    run_train(first, resume=True)
    ended = [stored(newest_checkpoint(config.checkpoints)) for config in (whole, first)]
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())
    shutil.rmtree(newest_checkpoint(first.checkpoints))
    run_train(load_config(tmp_path / "run" / "run.yaml", []), resume=True)  # its run.yaml names all sizes
    assert_same_weights(load_drafter(tmp_path / "run" / "head"), load_drafter(tmp_path / "whole" / "head"))
