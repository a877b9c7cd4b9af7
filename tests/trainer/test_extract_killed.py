"""kill -9 at random points: what `extract` ends with is what an undisturbed run ends with, byte for byte."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from killed_runs import assert_same_files, finish, kill_at, start, write_answers
from tiny_run import run_options

from trainer.config import load_config
from trainer.hidden_states.extract import run_extract

KILLS = 5


def written(directory: Path) -> int:
    return len(list(directory.glob("shard-*.safetensors")))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(target_dir, tmp_path):
    chance = random.Random(7)
    data = write_answers(tmp_path / "train.jsonl", 160, range(2, 20), chance)
    options = [*run_options(target_dir, data, tmp_path / "run"), "states.dtype=float32", "states.tokens_per_shard=200"]
    config = load_config(None, options)
    straight, directory = tmp_path / "straight", tmp_path / "killed"
    finish(start(run_extract, config, straight))
    shards = written(straight)
    for wanted in [0, *sorted(chance.sample(range(1, shards // 2), KILLS - 1))]:
        process = start(run_extract, config, directory)
        assert kill_at(process, partial(written, directory), wanted, 0.03 * chance.random())
    assert written(directory) < shards
    finish(start(run_extract, config, directory))
    assert_same_files(directory, straight)
