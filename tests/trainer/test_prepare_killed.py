"""kill -9 at random points: what `prepare` ends with is what an undisturbed run ends with, byte for byte."""

from __future__ import annotations

import random

import pytest
from killed_runs import assert_same_files, finish, kill_at, start, write_answers

from trainer.config import load_config
from trainer.prepare.prepare import run_prepare

SHARDS, PER_SHARD, KILLS = 40, 25, 5


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(target_dir, tmp_path):
    chance = random.Random(5)
    data = write_answers(tmp_path / "train.jsonl", SHARDS * PER_SHARD, range(20, 200), chance)
    options = [f"target={target_dir}", f"data.train={data}", "device=cpu", f"data.documents_per_shard={PER_SHARD}"]
    # Two workers are loaded anew in every run, which takes seconds.
    alone, two = (load_config(None, [*options, f"data.workers={workers}"]) for workers in (1, 2))
    straight = run_prepare(alone, tmp_path / "straight")
    directory, partial = tmp_path / "killed", tmp_path / "killed.partial"

    def done() -> int:
        return len(list(partial.glob("shard-*.json")))

    for number, wanted in enumerate(sorted(chance.sample(range(SHARDS - 5), KILLS))):
        process = start(run_prepare, two if number % 2 else alone, directory)
        assert kill_at(process, done, wanted, 0.05 * chance.random())
        assert not directory.exists()
    # Once more where all shards are there, and perhaps the directory too.
    process = start(run_prepare, alone, directory)
    kill_at(process, done, SHARDS, 0.05 * chance.random())
    assert directory.exists() == (not partial.exists())
    finish(start(run_prepare, two, directory))
    assert_same_files(directory, straight)
    assert not partial.exists()
