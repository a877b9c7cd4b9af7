"""Checkpoints of a run: resume is bit-exact, and what must not be resumed is refused."""

from __future__ import annotations

import signal

import pytest
import torch
from tiny_run import assert_same_weights, changed, signal_after_step, stored

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from trainer.checkpoint import checkpoints
from trainer.checkpoint.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from trainer.checkpoint.contract import make_contract
from trainer.checkpoint.dcp_safetensors import write_tensors
from trainer.train.assemble import open_run
from trainer.train.loop import train_step
from trainer.train.run import run_train


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(run_config, tmp_path, optimizer):
    run_config = changed(run_config, "optim", optimizer=optimizer)
    run = open_run(run_config)
    for _ in range(6):
        train_step(run)
    straight, run = run.state, open_run(run_config)
    for _ in range(3):
        train_step(run)
    save_checkpoint(tmp_path / "c", run.state, run.contract)
    torch.manual_seed(123)  # a new process starts with another random state
    run = open_run(run_config)
    load_checkpoint(newest_checkpoint(tmp_path / "c"), run.state, run.contract)
    for _ in range(3):
        train_step(run)
    second = run.state
    assert_same_weights(straight.drafter, second.drafter)
    assert straight.sampler.position == second.sampler.position
    assert straight.learning_rate == second.learning_rate
    for p, q in zip(straight.drafter.parameters(), second.drafter.parameters(), strict=True):
        for key, value in straight.optimizer_state(p).items():
            assert torch.equal(value, second.optimizer_state(q)[key])


def test_a_run_that_is_signalled_saves_stops_and_resumes_to_the_same_head(run_config, tmp_path, monkeypatch):
    run_train(run_config)
    interrupted = changed(run_config, output_dir=tmp_path / "other")
    signal_after_step(monkeypatch, 3)
    assert run_train(interrupted) == signal.SIGTERM
    assert newest_checkpoint(interrupted.checkpoints).name == "step-00000003"
    assert not (interrupted.output / "head").exists()
    monkeypatch.undo()
    assert run_train(interrupted, resume=True) is None
    assert_same_weights(load_drafter(run_config.output / "head"), load_drafter(interrupted.output / "head"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_depths": 4}, "num_depths = 3, this run says 4"),
        ({"retention": 0.5}, "retention = 0.8"),
        ({"retention_min": 0.1}, "retention_min = 0.0"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 1"),
        ({"mask_token_id": 2}, "this run says 2"),
        ({"draft_vocab_size": 100}, "draft"),
    ],
)
def test_resume_refuses_another_meaning(run_config, tmp_path, change, named):
    run = open_run(run_config)
    path = save_checkpoint(tmp_path / "c", run.state, run.contract)
    other = open_run(changed(run_config, "drafter", **change))
    with pytest.raises(InputError) as error:
        load_checkpoint(path, other.state, other.contract)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_resume_refuses_other_data(run_config, tmp_path):
    run = open_run(run_config)
    path = save_checkpoint(tmp_path / "c", run.state, run.contract)
    with pytest.raises(InputError, match="data = "):
        load_checkpoint(path, run.state, make_contract(run_config, run.drafter, run.rows[1:]))


def test_a_half_written_checkpoint_is_never_the_newest(run_config, tmp_path, monkeypatch):
    run = open_run(run_config)
    good = save_checkpoint(tmp_path / "c", run.state, run.contract)
    train_step(run)

    def fills_the_disk(*arguments):
        write_tensors(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_tensors", fills_the_disk)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint(tmp_path / "c", run.state, run.contract)
    assert (tmp_path / "c" / "step-00000001.partial").is_dir()
    assert newest_checkpoint(tmp_path / "c") == good


def test_only_the_newest_checkpoints_are_kept(run_config):
    run_train(run_config)
    assert sorted(p.name for p in (run_config.checkpoints).iterdir()) == ["step-00000004", "step-00000006"]


def test_a_checkpoint_holds_fp32_weights_and_no_pickle(run_config):
    run_train(changed(run_config, precision="bf16"))
    path = newest_checkpoint(run_config.checkpoints)
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    tensors = stored(path)
    assert {"fc.weight", "fc.weight:exp_avg", "fc.weight:exp_avg_sq", "fc.weight:step"} <= tensors.keys()
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
