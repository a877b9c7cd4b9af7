"""Runs of the trainer in processes of their own, killed where a test says so (test_*_killed.py)."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

WORDS = ["hello there,", "what is", "the answer?", "def f(x):\n", "    return x + 1\n"]
LOADED = [
    "trainer.__main__",
    "trainer.prepare.prepare",
    "trainer.hidden_states.extract",
    "trainer.regenerate.regenerate",
    "trainer.train.run",
]


def write_answers(path: Path, count: int, words: range, chance: random.Random) -> Path:
    """A file of prompts with answers of that many random words."""
    with path.open("w") as file:
        for _ in range(count):
            answer = " ".join(chance.choices(WORDS, k=chance.choice(words)))
            file.write(json.dumps({"prompt": "what?", "response": answer}) + "\n")
    return path


def start(work: Callable[..., object], *arguments: object) -> BaseProcess:
    """A process with one thread, forked from one that has torch and transformers loaded, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LOADED, "transformers.models.llama.modeling_llama"])
    process = context.Process(target=_with_one_thread, args=(work, *arguments))
    process.start()
    return process


def _with_one_thread(work: Callable[..., object], *arguments: object) -> None:
    """Two threads wait for each other wherever something else runs."""
    torch.set_num_threads(1)
    work(*arguments)


def finish(process: BaseProcess) -> None:
    process.join(300)
    assert process.exitcode == 0


def kill_at(process: BaseProcess, progress: Callable[[], int], wanted: int, delay: float) -> bool:
    """SIGKILL `delay` seconds after progress() is `wanted` or more. Returns whether the process was still at work."""
    while progress() < wanted and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def assert_same_files(found: Path, expected: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in expected.iterdir():
        assert (found / path.name).read_bytes() == path.read_bytes(), path.name
