"""kill -9 at random points: what `train` ends with is what an undisturbed run ends with, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import run_options

from trainer.__main__ import main
from trainer.checkpoints import newest_checkpoint

pytestmark = pytest.mark.slow
STEPS, KILLS = 24, 5


def settings(target_dir: Path, data_file: Path, run: Path, *more: str) -> list[str]:
    """With a checkpoint after every step."""
    options = run_options(target_dir, data_file, run)
    return ["train", *options, f"optim.max_steps={STEPS}", "checkpoint_every=1", "eval.num_prompts=1", *more]


def train(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def steps_done(run: Path) -> int:
    newest = newest_checkpoint(run / "checkpoints")
    return int(newest.name[-8:]) if newest else 0


def wait_for(run: Path, step: int, alive: Callable[[], bool], writing: bool = False) -> None:
    """Until there is a checkpoint of that step; writing: and the next one is begun."""
    while (steps_done(run) < step or (writing and not is_writing(run))) and alive():
        time.sleep(0.0005)


def is_writing(run: Path) -> bool:
    return any((run / "checkpoints").glob("*.partial"))


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have torch and transformers loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.run", "trainer.__main__"])
    return context


@pytest.fixture(scope="module")
def straight(processes, target_dir, data_file, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    process = processes.Process(target=train, args=(settings(target_dir, data_file, run),))
    process.start()
    process.join()
    assert process.exitcode == 0
    return run


def assert_same_files(found: Path, expected: Path) -> None:
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """By value: the order of a header's entries is random."""
    return {name: t for path in checkpoint.glob("*.safetensors") for name, t in load_file(path).items()}


def test_a_killed_run_ends_with_the_same_bits(processes, straight, target_dir, data_file, tmp_path):
    chance = random.Random(3)
    run = tmp_path / "run"
    arguments = settings(target_dir, data_file, run)
    halves = 0
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS - 1), KILLS))):
        process = processes.Process(target=train, args=([*arguments, "--resume"],))
        process.start()
        wait_for(run, step, process.is_alive, writing=number % 2 == 0)
        time.sleep((0.01 if number % 2 == 0 else 0.2) * chance.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (run / "head").exists()
        halves += is_writing(run)
    assert halves > 0
    process = processes.Process(target=train, args=([*arguments, "--resume"],))
    process.start()
    process.join()
    assert process.exitcode == 0
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
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer"]
    command = [*launch, *settings(target_dir, data_file, run), "--resume"]

    def start() -> subprocess.Popen[str]:
        how: dict[str, Any] = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "cwd": root, "text": True}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)

    killed = start()
    wait_for(run, 5, lambda: killed.poll() is None)
    workers = children(killed.pid)
    assert len(workers) == 2
    for process_id in (killed.pid, *workers):
        os.kill(process_id, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    reached = steps_done(run)
    assert 5 <= reached < STEPS

    finished = start()
    said, _ = finished.communicate()
    assert finished.returncode == 0, said
    assert f"resumed at step {reached} from" in said
    assert said.count("2 processes (ddp)") == said.count("written: ") == 1
    assert_same_files(run / "head", straight / "head")
