"""`algorithm: eagle3`: its defaults and refusals, a run that learns and resumes, a head for engines' own EAGLE3."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import run_options

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from peagle_core.generate import speculate
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.config import RunConfig, load_config
from trainer.data.documents import Document
from trainer.data.packing import pack
from trainer.errors import ConfigError
from trainer.evaluation.evaluate import held_out_text, prompts_of
from trainer.export.export import run_export
from trainer.hidden_states.from_transformers import TransformersStates
from trainer.inputs import load_inputs
from trainer.sizing.dry_run import dry_run
from trainer.target.load import embedding
from trainer.train.assemble import open_run
from trainer.train.loop import train_step
from trainer.train.run import run_eval, run_train


@pytest.fixture(scope="module")
def options(target_dir, data_file, tmp_path_factory) -> list[str]:
    return [
        option
        for option in run_options(target_dir, data_file, tmp_path_factory.mktemp("eagle3") / "run")
        if not option.startswith("drafter.num_hidden_layers")
    ] + ["algorithm=eagle3"]


@pytest.fixture(scope="module")
def finished(options) -> RunConfig:
    config = load_config(None, options)
    run_train(config)
    return config


def test_its_defaults_are_written_out_and_load_again(options, tmp_path):
    config = load_config(None, [*options, "drafter.num_depths=4"])
    drafter = config.drafter
    assert (drafter.num_hidden_layers, drafter.retention, drafter.train_embedding) == (1, 1.0, False)
    assert config.loss.depth_weights == pytest.approx([0.8**d for d in range(4)])
    config.save(tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml", []) == config
    said = load_config(None, [*options, "drafter.num_hidden_layers=2", "loss.depth_weights=[1,1,1]"])
    assert said.drafter.num_hidden_layers == 2
    assert said.loss.depth_weights == (1, 1, 1)
    default = load_config(None, [option for option in options if not option.startswith(("output_dir", "mode"))])
    assert default.output.name.endswith("-eagle3")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("drafter.retention=0.8", r"drafter.retention 1.0, found 0.8 \(every chain is trained whole\)"),
        ("drafter.retention_min=0.2", "drafter.retention_min 0.0, found 0.2"),
        ("drafter.mask_token_id=4", r"drafter.mask_token_id None, found 4 \(it has no mask rows\)"),
        ("drafter.train_embedding=true", "SGLang's EAGLE3 takes the target's"),
        ("drafter.norm_before_residual=true", "SGLang's EAGLE3 does not read it"),
        ("drafter.qk_norm=true", "SGLang's EAGLE3 does not read it"),
        ("drafter.hidden_state_design=projected_ntp", "it has no mask rows"),
        ("mode=partition", "mode auto, flat or stream, found partition"),
        ("num_segments=2", "num_segments is for mode: partition|mode auto"),
        ("loss.depth_weights=[1]", "1 values for 3 depths"),
        ("drafter.num_depths=0", "num_depths"),
        ("drafter=1", "drafter"),
        ("loss=null", "loss"),
    ],
)
def test_what_it_has_no_use_for_is_refused(options, override, says):
    with pytest.raises(ConfigError, match=says) as error:
        load_config(None, [*options, override])
    assert "\n" not in str(error.value)


def test_all_misfits_are_named_at_once(options):
    with pytest.raises(ConfigError, match=r"retention 1\.0.*mask_token_id None.*found partition"):
        load_config(None, [*options, "drafter.retention=0.8", "drafter.mask_token_id=4", "mode=partition"])


def test_a_run_leaves_a_head_without_mask_measured_autoregressively(finished):
    stored = load_file(finished.output / "head" / "model.safetensors")
    assert "mask_hidden" not in stored
    inputs = load_inputs(finished)
    assert inputs.mask_token_id is None
    assert torch.equal(stored["embed_tokens.weight"], embedding(inputs.target))
    drafter = load_drafter(finished.output / "head", torch.float32)
    assert drafter.config.autoregressive
    prompts = prompts_of(inputs.heldout, 2, finished.eval.prompt_tokens)
    lengths = [
        n
        for prompt in prompts
        for n in speculate(inputs.target, drafter, prompt, 3, 8, autoregressive=True).accept_lengths
    ]
    metrics = json.loads((finished.output / "metrics.json").read_text())
    assert metrics["acceptance"][0]["accept_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert len(metrics["accuracy_per_depth"]) == 3
    run_eval(finished)
    assert json.loads((finished.output / "eval.json").read_text())["acceptance"] == metrics["acceptance"]


def test_along_the_targets_own_answer_the_loop_is_the_loop(finished):
    inputs = load_inputs(finished)
    drafter = load_drafter(finished.output / "head", torch.float32, inputs.target).eval()
    (prompt,) = prompts_of(inputs.heldout, 1, finished.eval.prompt_tokens)
    loop = speculate(inputs.target, drafter, prompt, 3, 24)
    ids = torch.cat([prompt, torch.tensor(loop.output_ids[:24])])
    rows = pack([Document(ids, torch.arange(len(ids)) >= len(prompt))], 1000)
    states = TransformersStates(inputs.target, drafter.config.aux_layer_ids)
    _, (found,) = held_out_text(finished, drafter, states, rows)
    assert found.per_prompt == [(len(loop.accept_lengths), min(sum(loop.accept_lengths), 23))]


@pytest.mark.parametrize("mode", ["flat", "stream"])
def test_it_learns(options, mode):
    config = load_config(None, [*options, "optim.max_steps=30", f"mode={mode}", "optim.warmup_ratio=0.1"])
    run = open_run(config)
    losses = [train_step(run)[0].loss for _ in range(30)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_resumed_run_is_the_uninterrupted_one(finished, options, tmp_path):
    half = load_config(None, [*options, f"output_dir={tmp_path / 'run'}"])
    run_train(half)
    for path in sorted(half.checkpoints.iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert newest_checkpoint(half.checkpoints).name == "step-00000004"
    run_train(half, resume=True)
    ours, theirs = (load_file(c.output / "head" / "model.safetensors") for c in (half, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match="was trained with algorithm = eagle3, this run says peagle"):
        run_train(load_config(None, [*options, f"output_dir={half.output}", "algorithm=peagle"]), resume=True)


def test_export_says_how_to_serve_it(finished, tmp_path, capsys):
    directory = run_export(finished, destination=tmp_path / "head", verify=True)
    assert capsys.readouterr().out.count("equal to the target's own") == 2
    card = (directory / "README.md").read_text()
    assert "--speculative-algorithm EAGLE3" in card
    assert "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4" in card
    assert '"parallel_drafting": false' in card
    assert "mask token" not in card and "P-EAGLE" not in card


def test_a_dry_run_has_no_mask_token_either(options, capsys):
    dry_run(load_config(None, options))
    assert "mask token none (EAGLE-3)" in capsys.readouterr().out
