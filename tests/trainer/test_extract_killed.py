"""kill -9 at random points: what `extract` ends with is what an undisturbed run ends with, byte for byte."""

from __future__ import annotations

import json
import multiprocessing
import random
import time

import pytest
from tiny_run import run_options

from trainer.extract import run_extract
from trainer.load_config import load_config

KILLS = 5


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(target_dir, tmp_path):
    chance = random.Random(7)
    data = tmp_path / "train.jsonl"
    words = ["hello there,", "what is", "the answer?", "def f(x):\n", "    return x + 1\n"]
    with data.open("w") as file:
        for _ in range(160):
            answer = " ".join(chance.choices(words, k=chance.randrange(2, 20)))
            file.write(json.dumps({"prompt": "what?", "response": answer}) + "\n")
    options = [*run_options(target_dir, data, tmp_path / "run"), "states.dtype=float32", "states.tokens_per_shard=200"]
    config = load_config(None, options)
    straight, directory = tmp_path / "straight", tmp_path / "killed"
    finish(start(config, straight))
    shards = len(list(straight.glob("*.safetensors")))
    kills = 0
    for wanted in [0, *sorted(chance.sample(range(1, shards // 2), KILLS - 1))]:
        process = start(config, directory)
        while len(list(directory.glob("shard-*.safetensors"))) < wanted and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.03 * chance.random())
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills == KILLS
    assert len(list(directory.glob("*.safetensors"))) < shards
    finish(start(config, directory))
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in straight.iterdir())
    for path in straight.iterdir():
        assert (directory / path.name).read_bytes() == path.read_bytes(), path.name


def start(config, directory):
    """A process of its own, all of them alike, that needs no seconds to import torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.extract", "transformers.models.llama.modeling_llama"])
    process = context.Process(target=run_extract, args=(config, directory))
    process.start()
    return process


def finish(process) -> None:
    process.join(300)
    assert process.exitcode == 0
