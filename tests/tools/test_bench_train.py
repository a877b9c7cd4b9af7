"""`python -m tools.bench train`: contenders take turns in processes of their own; the tables say what was counted."""

from __future__ import annotations

import json

import pytest

from tools.bench.__main__ import main
from tools.bench.train import compare, growth
from tools.judges import speculators


@pytest.mark.slow
def test_command(capsys, tmp_path):
    path = tmp_path / "train.json"
    arguments = ["--lengths", "24", "--hidden", "64", "--contenders", "flat,stream", "--rounds", "2", "--no-peer"]
    assert main(["train", *arguments, "--scaling", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["race"]
    assert [row["contender"] for row in rows] == ["flat", "stream"]
    assert rows[0]["elements"] == rows[1]["elements"] > 24, "the same seeds draw the same elements"
    for row in rows:
        assert row["seconds"] >= row["fastest"] > 0
        assert 0 < row["peak_mib"] < row["process_mib"]
    assert "S=24 H=64 K=8" in capsys.readouterr().out


def test_tables():
    common = {"length": 10, "hidden": 64, "process_mib": 300.0, "elements": 40}
    rows = [
        {"contender": "flat", "seconds": 2.0, "fastest": 1.5, "peak_mib": 100.0, **common},
        {"contender": "peer", "seconds": 7.0, "fastest": 6.0, "peak_mib": 400.0, **common},
    ]
    flat, last = compare(rows).splitlines()[1:]
    assert flat.split() == ["flat", "2.000", "1.500", "100", "3.5x", "0.25"]
    assert last.split()[-2:] == ["1.0x", "1.00"]
    assert growth(rows[:1]).splitlines()[1].split() == ["10", "40", "2.00", "50000.0", "5000000.00", "100", "300"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--contenders", "fast"], "unknown contender 'fast'"), (["--hidden", "65"], "choose from 64, 256")],
)
def test_bad_arguments(arguments, message, capsys):
    assert main(["train", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not speculators.is_installed(), reason="speculators is installed by the benchmark only")
def test_the_peer_takes_its_turns(tmp_path):
    path = tmp_path / "train.json"
    arguments = ["--lengths", "24", "--hidden", "64", "--contenders", "flat", "--rounds", "1", "--scaling"]
    assert main(["train", *arguments, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["race"]
    assert [row["contender"] for row in rows] == ["flat", "peer"]
    assert rows[1]["seconds"] > 0
