"""kill -9 at random points: what `train` ends with is what an undisturbed run ends with, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import assert_same_files, finish, kill_at, start
from safetensors.torch import load_file
from tiny_run import run_options

from trainer.__main__ import main
from trainer.checkpoint.checkpoints import newest_checkpoint

pytestmark = pytest.mark.slow
STEPS, KILLS = 24, 5


def settings(target_dir: Path, data_file: Path, run: Path, *more: str) -> list[str]:
    """With a checkpoint after every step."""
    options = run_options(target_dir, data_file, run)
    return ["train", *options, f"optim.max_steps={STEPS}", "checkpoint_every=1", "eval.num_prompts=1", *more]


def train(arguments: list[str]) -> None:
    sys.exit(main(arguments))


def steps_done(run: Path) -> int:
    newest = newest_checkpoint(run / "checkpoints")
    return int(newest.name[-8:]) if newest else 0


def steps_done_while(run: Path, writing: bool) -> int:
    """writing: 0 unless the next checkpoint is begun."""
    return steps_done(run) if is_writing(run) or not writing else 0


def is_writing(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.partial"))


@pytest.fixture(scope="module")
def straight(target_dir, data_file, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    finish(start(train, settings(target_dir, data_file, run)))
    return run


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """By value: the order of a header's entries is random."""
    return {name: t for path in checkpoint.glob("*.safetensors") for name, t in load_file(path).items()}


def test_a_killed_run_ends_with_the_same_bits(straight, target_dir, data_file, tmp_path):
    chance = random.Random(3)
    run = tmp_path / "run"
    arguments = settings(target_dir, data_file, run)
    halves = 0
    # Early enough that a quick machine has steps left when the signal comes
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS // 2), KILLS))):
        process, writing = start(train, [*arguments, "--resume"]), number % 2 == 0
        delay = (0.01 if writing else 0.1) * chance.random()
        assert kill_at(process, partial(steps_done_while, run, writing), step, delay)
        assert not (run / "head").exists()
        halves += is_writing(run)
    assert halves > 0
    finish(start(train, [*arguments, "--resume"]))
    assert_same_files(run / "head", straight / "head")
    last, expected = (newest_checkpoint(place / "checkpoints") for place in (run, straight))
    assert last.name == expected.name == f"step-{STEPS:08d}"
    assert (last / "state.json").read_text() == (expected / "state.json").read_text()
    found = tensors_of(last)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(expected).items())
    assert not list((run / "checkpoints").glob("*.partial"))
    results = [(place / "metrics.json").read_text().replace(str(place), "") for place in (run, straight)]
    assert results[0] == results[1]


def children(process_id: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        found += [int(path.parent.name)] if int(parent) == process_id else []
    return found


def test_two_killed_processes_end_with_the_bits_of_one(straight, target_dir, data_file, tmp_path):
    """Two rows a step: whether one process adds two gradients or two processes do, the sum is the same."""
    run, root = tmp_path / "run", Path(__file__).parents[2]
    # standalone: on a port of its own, for another test may be running.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]
    command = [*launch, *settings(target_dir, data_file, run), "--resume"]

    def launched() -> subprocess.Popen[str]:
        how: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": root, "text": True}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)

    killed = launched()
    while steps_done(run) < 5 and killed.poll() is None:
        time.sleep(0.0005)
    workers = children(killed.pid)
    assert len(workers) == 2
    for process_id in (killed.pid, *workers):
        os.kill(process_id, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = steps_done(run)
    assert 5 <= reached < STEPS

    finished = launched()
    said, _ = finished.communicate()
    assert finished.returncode == 0, said
    assert f"resumed at step {reached} from" in said
    assert said.count("2 processes (ddp)") == said.count("written: ") == 1
    assert_same_files(run / "head", straight / "head")
