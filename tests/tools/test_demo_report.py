"""The demo's report: every server is asked for, lines have their names, each side is compared at its best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.demo import measure
from tools.demo.measure import ALGORITHMS, CONCURRENCY, NUM_DRAFT_TOKENS, Run, Side, acceptance, drafting, summarise
from tools.demo.report import best, label, write_report

SPEED_UP = {"none": 1.0, "EAGLE3": 1.5, "PEAGLE": 1.8}


def made_up_runs() -> list[dict]:
    """EAGLE3 is fastest at K=3 and PEAGLE at K=7, alone; the other way round at 4. The machine slows down meanwhile."""
    runs = []
    for k in NUM_DRAFT_TOKENS:
        for concurrency in CONCURRENCY:
            for algorithm in ALGORITHMS:
                ratio = SPEED_UP[algorithm]
                if algorithm != "none":
                    ratio += k / 100 if (algorithm == "PEAGLE") == (concurrency == 1) else -k / 100
                passes = {"none": 0.0, "EAGLE3": None, "PEAGLE": 1.0}[algorithm]
                shares = [] if algorithm == "none" else [0.5**i for i in range(1, k + 1)]
                speed = ratio * 1000 / k
                runs.append(vars(Run(algorithm, k, concurrency, speed, ratio, 2.0, shares, passes, 1.0, 8)))
    return runs


def test_each_server_is_told_its_head():
    eagle3, peagle = (drafting(Path("d"), algorithm, 5) for algorithm in ("EAGLE3", "PEAGLE"))
    head = "--speculative-draft-model-path"
    assert eagle3[eagle3.index(head) + 1] == "d/eagle3-head"
    assert peagle[peagle.index(head) + 1] == "d/head"
    assert eagle3[eagle3.index("--speculative-num-draft-tokens") + 1] == "6"
    assert drafting(Path("d"), "none", 5) == []


def test_the_report_has_every_run_and_each_sides_best(tmp_path, capsys):
    runs = made_up_runs()
    write_report(tmp_path, runs, "some prompts")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs"] == runs
    assert (tmp_path / "report.png").stat().st_size > 10_000
    alone, four = report["best"]["1"], report["best"]["4"]
    assert (alone["EAGLE3"]["k"], alone["PEAGLE"]["k"]) == (3, 7)
    assert (four["EAGLE3"]["k"], four["PEAGLE"]["k"]) == (7, 3)
    assert alone["ratio"] == pytest.approx(1.87 / 1.47)
    said = capsys.readouterr().out
    assert "1 at a time: PEAGLE at its best K=7 is 1.27 times as fast as EAGLE3 at its best K=3" in said
    lines = [line for line in said.splitlines() if "100%" in line]
    assert [line[:16].strip() for line in lines] == [label(run) for run in runs]
    assert [line for line in lines if "not counted" in line] == [line for line in lines if line.startswith("EAGLE3")]
    assert best(runs) == report["best"]


def answer(tokens: list[int]) -> dict:
    return {"output_ids": tokens, "meta_info": {"spec_correct_drafts_histogram": [1, 0, 2, 1]}}


def test_a_run_is_measured_against_its_round():
    side = Side("PEAGLE", [answer([1, 2, 3]), answer([4, 5, 6])], seconds=0.5, drafter_passes_per_step=1.0)
    run = summarise(side, 3, 1, 4.0, [[1, 2, 3], [4, 5, 7]])
    assert (run.tok_per_s, run.speed_up, run.outputs_equal, run.requests) == (12.0, 3.0, 0.5, 2)
    assert run.accept_length == 1 + (0.75 + 0.75 + 0.25)
    assert acceptance(side.answers, 3) == (2.75, [0.75, 0.75, 0.25])


class Recorder:
    """Stands for a server: notes whose turn it is."""

    def __init__(self, name: str, turns: list[tuple[str, int]]) -> None:
        self.name, self.turns, self.http, self.steps = name, turns, self, 0

    def generate(self, prompt: list[int], new_tokens: int) -> dict:
        self.turns.append((self.name, prompt[0]))
        self.steps += 2
        return answer([prompt[0]] * new_tokens)

    def post(self, path: str, params: dict) -> Recorder:
        self.turns.clear()  # what was asked before is the warm-up
        return self

    def raise_for_status(self) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {"decode_steps": self.steps, "decode_drafter_passes": self.steps}


def test_servers_take_turns_and_answer_every_prompt_in_order(monkeypatch):
    monkeypatch.setattr(measure, "BLOCK", 2)
    turns: list[tuple[str, int]] = []
    servers: dict = {name: Recorder(name, turns) for name in ALGORITHMS}
    none, eagle3, peagle = measure.take_turns(servers, [[i] for i in range(3)], 4, 1, "name")
    names = [*"NEP", *"NEP"]
    whose = dict(zip("NEP", ALGORITHMS, strict=True))
    blocks = [(0, 1)] * 3 + [(2,)] * 3
    assert turns == [(whose[name], i) for name, block in zip(names, blocks, strict=True) for i in block]
    assert none.outputs == eagle3.outputs == peagle.outputs == [[i] * 4 for i in range(3)]
    assert [side.drafter_passes_per_step for side in (none, eagle3, peagle)] == [0.0, None, 1.0]
    assert all(side.seconds > 0 for side in (none, eagle3, peagle))
