"""Two processes on gloo, started by torchrun, end with what one process computes, whatever is divided between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_jobs as jobs
import pytest
import torch
from distributed_jobs import STEPS, options, take_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import run_options

from peagle_core.checkpoint import load_drafter
from trainer.__main__ import main
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.errors import ConfigError
from trainer.export.export import run_export
from trainer.sizing.choose import settle_parallel
from trainer.train.run import run_train

pytestmark = pytest.mark.slow

PAIRS = [f"{parallel}: {name}" for parallel in ("ddp", "fsdp") for name in STEPS]


def torchrun(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes, from the repository's root, on a port of their own."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, *map(str, arguments)]
    root = Path(__file__).parents[2]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=settings, cwd=root)


@pytest.fixture(scope="module")
def place(target_dir, data_file, tmp_path_factory) -> Path:
    """The directory in which two processes did all their jobs."""
    directory = tmp_path_factory.mktemp("two")
    done = torchrun(jobs.__file__, target_dir, data_file, directory)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


@pytest.fixture(scope="module")
def two(place) -> dict[str, Any]:
    return torch.load(place / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def alone(target_dir, data_file, tmp_path_factory):
    """The same steps in this process."""
    done: dict[str, Any] = {}

    def take(name: str) -> dict[str, Any]:
        if name not in done:
            done[name] = take_steps(options(target_dir, data_file, tmp_path_factory.mktemp("one"), *STEPS[name]))
        return done[name]

    return take


@pytest.mark.parametrize("pair", PAIRS)
def test_loss_and_gradients_are_those_of_one_process(two, alone, pair):
    both, one = two[pair], alone(pair.split(": ")[1])
    assert both["tokens"] == one["tokens"]
    for a, b in zip(both["loss"], one["loss"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b, rel=1e-5)
    assert both["norm"] == pytest.approx(one["norm"], rel=1e-5)
    assert len(both["gradients"]) == len(one["gradients"]) >= 3
    for found, expected in zip(both["gradients"], one["gradients"], strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # Float32, added up in another order. A gradient that nearly cancels is as exact as what was added up: in
            # the fourth step `copy_bias` has 1.5e-6, a six-hundredth of what it had in the second.
            error = (found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-5)
            assert error < 1e-5, (name, float(error))


def test_muon_orthogonalises_whole_matrices_whose_rows_are_divided(two, target_dir, data_file, tmp_path):
    """Newton-Schulz runs in bf16, which shows sums in another order; pieces by themselves would be far off."""
    config = options(target_dir, data_file, tmp_path, "optim.optimizer=muon")
    one, before = take_steps(config), take_steps(config, 0)
    for name, weight in one["weights"].items():
        moved = (weight - before["weights"][name]).norm()
        assert moved > 0
        assert (two["muon"]["weights"][name] - weight).norm() < 0.1 * moved, name


def test_one_process_is_told_to_stop_and_all_stop_at_its_step(place, two):
    assert two["run"]["stopped"] == signal.SIGTERM
    assert two["run"]["newest"] == "step-00000003"
    assert two["run"]["finished"] is None
    assert len(list((place / "stopped/checkpoints/step-00000003").glob("shard-*"))) == 2


@pytest.fixture(scope="module")
def straight(target_dir, data_file, tmp_path_factory) -> Path:
    """The run of one process that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert run_train(options(target_dir, data_file, run, *jobs.MEASURED)) is None
    return run


def assert_close(found: Path, expected: Path) -> None:
    """Adam makes much of gradients next to nothing, so that weights agree less closely than gradients do."""
    one, other = (dict(load_drafter(path).named_parameters()) for path in (found, expected))
    for name, weight in other.items():
        assert torch.allclose(one[name], weight, atol=1e-4), name


def test_a_sharded_run_goes_on_replicated_and_ends_as_one_process_does(place, straight):
    assert_close(place / "run/head", straight / "head")
    records = [json.loads((run / "metrics.json").read_text()) for run in (place / "run", straight)]
    assert records[0]["acceptance"] == records[1]["acceptance"]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-4)
    assert records[0]["step"] == records[1]["step"] == 6


def test_what_is_measured_on_the_way_is_what_one_process_measures(place, straight):
    both, one = (evaluations(run) for run in (place / "run", straight))
    assert both.keys() == one.keys() and {"eval/loss", "eval/accept_length_k3"} < one.keys()
    for tag, values in one.items():
        assert [step for step, _ in values] == [2, 4, 6]
        assert both[tag] == [(step, pytest.approx(value, rel=1e-3)) for step, value in values], tag


def evaluations(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("eval/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_a_sharded_run_goes_on_in_one_process(place, straight, target_dir, data_file, tmp_path):
    run = shutil.copytree(place / "stopped", tmp_path / "run")
    config = options(target_dir, data_file, run, "optim.rows_per_step=3")
    assert run_train(config, resume=True) is None
    assert_close(run / "head", straight / "head")


def test_processes_fill_one_store_and_train_from_it(place, two, straight):
    """Rows that no process has met are added by whoever meets them; the last run removes what it read."""
    assert len(two["shards"]) > 3
    assert_close(place / "filled/head", straight / "head")
    assert_close(place / "read/head", straight / "head")
    assert not (place / "states").exists()


def test_export_joins_the_pieces(place, target_dir, data_file, tmp_path):
    config = options(target_dir, data_file, place / "run")
    checkpoint = place / "stopped/checkpoints/step-00000003"
    assert len(list(checkpoint.glob("shard-*"))) == 2
    joined = load_drafter(run_export(config, checkpoint, tmp_path / "head"))
    assert all(torch.isfinite(p).all() for p in joined.parameters())
    newest = newest_checkpoint(place / "run/checkpoints")
    assert_close(run_export(config, newest, tmp_path / "last"), place / "run/head")


def test_only_the_first_process_speaks_and_writes(place):
    assert "parallel: ddp" in (place / "run/run.yaml").read_text()
    assert len(list((place / "run/tensorboard").iterdir())) == 2  # one file for each of the two runs
    assert not list(place.glob("run/.seen-*"))


def test_what_one_process_finds_wrong_all_say(two):
    for name, says in {
        "passes": "process 1 on ",
        "sent": "no such file",
        "same": "the data of process 1 differs from process 0's",
        "shared": "is not the same place for process 1",
        "before": "no head",
        "replicated": "step 1 (rows ",
        "sharded": "the loss is nan",
    }.items():
        first, second = two["errors"][name]
        assert says in first, first
        assert first == second.replace("seen-by-1", "seen-by-0")
        assert first.endswith("known: True")


def test_sharded_targets_say_what_whole_ones_say(two):
    assert two["targets"] == {"tied": True, "experts": True}


def refused(capsys, arguments: list[str], says: str) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert says in line


def test_launched_wrongly_is_one_sentence(target_dir, data_file, tmp_path, capsys, monkeypatch):
    train = ["train", *run_options(target_dir, data_file, tmp_path / "run")]
    refused(capsys, [*train, "parallel=fsdp"], "parallel: fsdp is for several processes; start them with `torchrun")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(capsys, train, "WORLD_SIZE is 2 but RANK, LOCAL_RANK")
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    refused(capsys, train, "but MASTER_ADDR not set")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    refused(capsys, train, "1 processes on a machine with 0 GPUs")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("gib", "choice"), [(16, "ddp"), (0.0005, "fsdp")])
def test_auto_is_what_fits(target_dir, data_file, tmp_path, monkeypatch, gib, choice):
    monkeypatch.setattr("trainer.parallel.processes.size", lambda: 2)
    monkeypatch.setattr("trainer.parallel.processes.exchange", lambda value: [value] * 2)
    monkeypatch.setattr("trainer.sizing.choose.device_memory", lambda _: int(gib * 2**30))
    config = options(target_dir, data_file, tmp_path)
    assert settle_parallel(config).parallel == choice
    asked = config.model_copy(update={"parallel": "ddp"})
    assert settle_parallel(asked) is asked
    with pytest.raises(ConfigError, match="device: cuda:1 is one for 2 processes"):
        settle_parallel(config.model_copy(update={"device": "cuda:1"}))


def test_some_verbs_are_for_one_process(target_dir, data_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.parallel.processes.size", lambda: 2)
    monkeypatch.setattr("trainer.parallel.processes.exchange", lambda value: [value] * 2)
    for verb in ("export", "prepare"):
        refused(capsys, [verb, *run_options(target_dir, data_file, tmp_path / "run")], f"{verb} is for one process")
