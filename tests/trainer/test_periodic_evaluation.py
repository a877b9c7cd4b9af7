"""Evaluation during training: it says how good the drafter is, and the run goes on as if it had not been asked."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import run_options

from trainer.checkpoint.checkpoints import newest_checkpoint, tensor_files
from trainer.config import load_config
from trainer.train.run import run_train


@pytest.fixture
def options(target_dir, data_file, tmp_path):
    return [*run_options(target_dir, data_file, tmp_path / "run"), f"data.heldout={data_file}", "eval.num_prompts=3"]


def scalars(config):
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# Dropout is what draws random numbers besides the elements.
@pytest.mark.parametrize("design", ["shared", "regularised_ntp"])
def test_it_changes_no_bit_of_the_run(options, tmp_path, design):
    tensors, records = [], []
    for name, every in (("without", "null"), ("with", "1")):
        settings = [f"output_dir={tmp_path / name}", f"eval.every={every}", f"drafter.hidden_state_design={design}"]
        config = load_config(None, [*options, *settings])
        run_train(config)
        checkpoint = newest_checkpoint(config.checkpoints)
        tensors.append({k: t for path in tensor_files(checkpoint) for k, t in load_file(path).items()})
        records.append((checkpoint / "state.json").read_text())
    assert records[0] == records[1]
    assert tensors[0].keys() == tensors[1].keys() and {"fc.weight", "fc.weight:exp_avg"} < tensors[0].keys()
    for name in tensors[0]:
        assert torch.equal(tensors[0][name], tensors[1][name]), name


def test_tensorboard_and_the_terminal_have_its_numbers(options, capfd):
    config = load_config(None, [*options, "eval.every=2", "eval.every_prompts=1", "eval.every_rows=2"])
    run_train(config)
    found = scalars(config)
    metrics = json.loads((config.output / "metrics.json").read_text())
    lengths = ["expected_accept_length", "accept_length_k3", "accept_length_on_text_k3"]
    names = ["loss", *lengths, *(f"accuracy_depth_{d}" for d in range(3))]
    for name in names:
        assert [step for step, _ in found[f"eval/{name}"]] == [2, 4, 6]
    assert found["eval/loss"][-1][1] == pytest.approx(metrics["loss"], rel=1e-6)
    assert found["eval/accept_length_k3"][-1][1] == pytest.approx(metrics["acceptance"][0]["accept_length"], rel=1e-6)
    assert found["eval/loss"][0][1] > found["eval/loss"][1][1]  # it learns
    out = capfd.readouterr()
    said = out.out + out.err
    assert "step 2, held-out text: loss" in said and "step 4, drafter loop, K = 3" in said
    assert "over 1 prompts" in said and "over 3 prompts" in said


def test_without_every_only_the_end_is_measured(options):
    config = load_config(None, options)
    run_train(config)
    assert [step for step, _ in scalars(config)["eval/loss"]] == [6]


def test_its_time_does_not_count_as_training(options, monkeypatch):
    """The seconds of a step are those of the step, however long the evaluation before it took."""
    import time

    from trainer.train import periodic_evaluation

    evaluate = periodic_evaluation.evaluate

    def slow(*arguments):
        time.sleep(3)
        return evaluate(*arguments)

    monkeypatch.setattr(periodic_evaluation, "evaluate", slow)
    config = load_config(None, [*options, "eval.every=2", "optim.max_steps=4"])
    run_train(config)
    assert all(seconds < 3 for _, seconds in scalars(config)["throughput/seconds_per_step"])
