"""Which servers the benchmark starts, keeps and stops, and what each is told."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from peagle_core.errors import InputError
from tools.bench.serve import contenders
from tools.bench.serve.contenders import Fleet, Launch


def test_each_server_is_told_its_head(monkeypatch, tmp_path):
    told: dict[str, list[str]] = {}

    @contextmanager
    def serve(target, log, *arguments, environment, start):
        told[log.stem] = list(arguments)
        yield SimpleNamespace()

    monkeypatch.setattr(contenders, "serve", serve)
    monkeypatch.setattr(contenders, "server_info", lambda server: {})
    heads = {"EAGLE3": tmp_path / "e", "PEAGLE": tmp_path / "p"}
    launch = Launch(tmp_path, heads, (5,), ("--dtype", "float32"), confidence=0.1)
    with Fleet(launch, tmp_path) as fleet:
        running = fleet.open(launch.rounds()[0])
        assert [contender.label for contender in running] == ["no speculation", "EAGLE3 K=5", "PEAGLE K=5"]
    assert told["none"] == ["--dtype", "float32"]
    for name, head in (("EAGLE3", "e"), ("PEAGLE", "p")):
        arguments = told[f"{name}-5"]
        assert arguments[:2] == ["--dtype", "float32"]
        assert arguments[arguments.index("--speculative-algorithm") + 1] == name
        assert arguments[arguments.index("--speculative-draft-model-path") + 1] == str(tmp_path / head)
        assert arguments[arguments.index("--speculative-num-steps") + 1] == "5"
        assert ("--speculative-adaptive" in arguments) == (name == "PEAGLE")
    (table,) = tmp_path.glob("*.json")
    assert told["PEAGLE-5"][-1] == str(table)
    assert json.loads(table.read_text()) == {"confidence": 0.1, "1": {"candidate_steps": [1, 2, 3, 5]}}


def test_a_fleet_keeps_what_the_next_round_needs_and_stops_all_at_the_end(monkeypatch, tmp_path):
    running: list[str] = []
    started: list[str] = []

    @contextmanager
    def serve(target, log, *arguments, environment, start):
        started.append(log.stem)
        running.append(log.stem)
        yield SimpleNamespace()
        running.remove(log.stem)

    monkeypatch.setattr(contenders, "serve", serve)
    monkeypatch.setattr(contenders, "server_info", lambda server: {})
    launch = Launch(tmp_path, {"PEAGLE": tmp_path / "p"}, (3, 5))
    with Fleet(launch, tmp_path) as fleet:
        first, second = (fleet.open(members) for members in launch.rounds())
        assert first[0] is second[0]
        assert sorted(running) == ["PEAGLE-5", "none"]
    assert not running
    assert started == ["none", "PEAGLE-3", "PEAGLE-5"]


def test_a_fleet_stops_every_server_when_one_does_not_come_up(monkeypatch, tmp_path):
    running: list[str] = []

    @contextmanager
    def serve(target, log, *arguments, environment, start):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("Loading\nno such head\n")
        if log.stem == "PEAGLE-3":
            raise RuntimeError
        running.append(log.stem)
        yield SimpleNamespace()
        running.remove(log.stem)

    monkeypatch.setattr(contenders, "serve", serve)
    monkeypatch.setattr(contenders, "server_info", lambda server: {})
    launch = Launch(tmp_path, {"PEAGLE": tmp_path / "p"}, (3,))
    with (
        pytest.raises(InputError, match=r"PEAGLE K=3 did not come up.*: no such head"),
        Fleet(launch, tmp_path) as fleet,
    ):
        fleet.open(launch.rounds()[0])
    assert not running


def test_rounds_hold_the_servers_that_take_turns(tmp_path):
    launch = Launch(tmp_path, {"EAGLE3": tmp_path, "PEAGLE": tmp_path}, (3, 5))
    assert launch.rounds() == [[("none", 0), ("EAGLE3", k), ("PEAGLE", k)] for k in (3, 5)]
    alone = replace(launch, together=False, plain=False).rounds()
    assert alone == [[("EAGLE3", 3)], [("PEAGLE", 3)], [("EAGLE3", 5)], [("PEAGLE", 5)]]
    assert Launch(tmp_path, {}, (3, 5)).rounds() == [[("none", 0)]]
