"""The demo's report: every server is asked for, lines have their names, each side is compared at its best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.demo.measure import CONCURRENCY, SETUPS, Run, acceptance, summarise
from tools.demo.report import best, label, write_report

SPEED = {"none": 100.0, "EAGLE3": 150.0, "PEAGLE": 180.0}


def made_up_runs() -> list[dict]:
    """EAGLE3 is fastest at K=3 and PEAGLE at K=7, alone; the other way round at 4."""
    runs = []
    for setup in SETUPS:
        for concurrency in CONCURRENCY:
            speed = SPEED[setup.algorithm] * concurrency
            if setup.k:
                speed += setup.k if (setup.algorithm == "PEAGLE") == (concurrency == 1) else -setup.k
            passes = {"none": 0.0, "EAGLE3": None, "PEAGLE": 1.0}[setup.algorithm]
            shares = [0.5**i for i in range(1, setup.k + 1)]
            runs.append(vars(Run(setup.algorithm, setup.k, concurrency, speed, 2.0, shares, passes, 1.0, 8)))
    return runs


def test_the_three_are_served_at_every_k():
    names = [setup.name for setup in SETUPS]
    assert names[0] == "no speculation"
    assert sorted(names[1:]) == sorted(f"{algorithm} K={k}" for algorithm in ("EAGLE3", "PEAGLE") for k in (3, 5, 7))
    eagle3, peagle = (
        next(s for s in SETUPS if s.name == f"{a} K=5").arguments(Path("d")) for a in ("EAGLE3", "PEAGLE")
    )
    assert eagle3[-1] == "d/eagle3-head"
    assert peagle[-1] == "d/head"
    assert eagle3[eagle3.index("--speculative-num-draft-tokens") + 1] == "6"
    assert SETUPS[0].arguments(Path("d")) == []


def test_the_report_has_every_run_and_each_sides_best(tmp_path, capsys):
    runs = made_up_runs()
    write_report(tmp_path, runs, "some prompts")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs"] == runs
    assert (tmp_path / "report.png").stat().st_size > 10_000
    alone, four = report["best"]["1"], report["best"]["4"]
    assert (alone["EAGLE3"]["k"], alone["PEAGLE"]["k"]) == (3, 7)
    assert (four["EAGLE3"]["k"], four["PEAGLE"]["k"]) == (7, 3)
    assert alone["ratio"] == pytest.approx(187 / 147)
    said = capsys.readouterr().out
    assert "1 at a time: PEAGLE's best, K=7, makes 1.27 times the tokens of EAGLE3's best, K=3" in said
    lines = {line[:16].strip(): line for line in said.splitlines() if "100%" in line and " 1 " in line}
    assert list(lines) == [label(run) for run in runs if run["concurrency"] == 1]
    assert "not counted" in lines["EAGLE3 K=3"]
    assert "1.00" in lines["PEAGLE K=3"]
    assert best(runs) == report["best"]


def test_passes_are_counted_where_there_is_a_counter():
    eagle3, peagle = (next(s for s in SETUPS if s.name == f"{a} K=3") for a in ("EAGLE3", "PEAGLE"))
    answers = [{"output_ids": [1, 2, 3], "meta_info": {"spec_correct_drafts_histogram": [1, 0, 2, 1]}}]
    counters = [{"decode_steps": n, "decode_drafter_passes": n} for n in (2, 6)]
    run = summarise(peagle, 1, answers, 0.5, [[1, 2, 3]], *counters)
    assert (run.drafter_passes_per_step, run.tok_per_s, run.outputs_equal) == (1.0, 6.0, 1.0)
    assert run.accept_length == 1 + (0.75 + 0.75 + 0.25)
    assert summarise(eagle3, 1, answers, 0.5, [[1, 2, 4]], None, None).drafter_passes_per_step is None
    assert acceptance(answers, 3) == (2.75, [0.75, 0.75, 0.25])
