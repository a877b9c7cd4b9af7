"""kill -9 at random points: what `prepare` ends with is what an undisturbed run ends with, byte for byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.load_config import load_config
from trainer.prepare import run_prepare

SHARDS, PER_SHARD = 40, 25


def finished(partial: Path) -> int:
    return len(list(partial.glob("shard-*.json")))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(target_dir, tmp_path):
    chance = random.Random(5)
    data = tmp_path / "train.jsonl"
    words = ["hello there,", "what is", "the answer?", "def f(x):\n", "    return x + 1\n"]
    with data.open("w") as file:
        for _ in range(SHARDS * PER_SHARD):
            answer = " ".join(chance.choices(words, k=chance.randrange(20, 200)))
            file.write(json.dumps({"prompt": "what?", "response": answer}) + "\n")
    options = [f"target={target_dir}", f"data.train={data}", "device=cpu", f"data.documents_per_shard={PER_SHARD}"]
    straight = run_prepare(load_config(None, [*options, "data.workers=1"]), tmp_path / "straight")
    directory, partial = tmp_path / "killed", tmp_path / "killed.partial"
    command = [sys.executable, "-m", "trainer", "prepare", *options, "data.workers=2", "--to", str(directory)]
    kills = 0
    for wanted in [*sorted(chance.sample(range(1, SHARDS), 2)), SHARDS]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while finished(partial) < wanted and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.05 * chance.random())
        process.kill()
        kills += process.wait() == -9
        assert directory.exists() == (not partial.exists())
    assert kills >= 2
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in directory.iterdir()) == sorted(p.name for p in straight.iterdir())
    for path in straight.iterdir():
        assert (directory / path.name).read_bytes() == path.read_bytes(), path.name
    assert not partial.exists()
