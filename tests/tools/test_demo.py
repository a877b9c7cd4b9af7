"""The demo measures the shipped heads with the serving benchmark, and fails when an output is not the target's own."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tools.demo import __main__ as demo
from tools.demo import serve, short_training


@pytest.fixture
def without_a_tokenizer(monkeypatch):
    monkeypatch.setattr(serve, "prompt_writer", lambda tokenizer, raw: SimpleNamespace(raw=raw))


def test_the_demo_asks_every_server_for_the_same_greedy_tokens(without_a_tokenizer, tmp_path):
    study = serve.demo_study(tmp_path / "target", demo.HEADS, "float32", serve.MEASURED)
    assert study.servers.rounds() == [[("none", 0), ("EAGLE3", k), ("PEAGLE", k)] for k in (3, 5)]
    for head in study.servers.heads.values():
        assert {"config.json", "model.safetensors", "metrics.json", "README.md"} <= {p.name for p in head.iterdir()}
    assert study.sampling["temperature"] == 0
    assert not study.writer.raw


def test_its_prompts_are_48_of_three_kinds_in_turn():
    questions = serve.demo_questions()
    assert len(set(questions)) == 48
    assert {q.category for q in questions[:3]} == {q.category for q in questions} == {"chat", "code", "maths"}


def test_no_prompt_of_the_demo_is_in_the_answers_that_it_trains_on():
    answers = (demo.HEADS.parent / "tools" / "demo" / short_training.ANSWERS).read_text().splitlines()
    asked = {message["content"] for line in answers for message in json.loads(line)["messages"]}
    assert len(answers) >= 200
    assert not asked & {q.turns[0] for q in serve.demo_questions()}


@pytest.mark.parametrize(("capabilities", "dtypes"), [({}, ["float32"]), ({"amx_bf16": True}, ["bfloat16", "float32"])])
def test_it_measures_in_the_fast_dtype_and_compares_in_float32(
    without_a_tokenizer, monkeypatch, tmp_path, capabilities, dtypes
):
    monkeypatch.setattr(serve.torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(serve, "measure", lambda study, directory: study.servers.arguments[1])
    assert serve.serve(tmp_path, demo.HEADS, tmp_path) == dtypes


@pytest.mark.parametrize(("equal", "code"), [([1.0], 0), ([0.97], 1), ([0.97, 1.0], 0), ([1.0, 0.97], 1)])
def test_it_fails_when_an_output_differs_in_float32_which_comes_last(monkeypatch, tmp_path, capsys, equal, code):
    found = [SimpleNamespace(rows=[SimpleNamespace(outputs_equal=share)], workload="a run") for share in equal]
    monkeypatch.setattr(serve, "serve", lambda *places: found)
    monkeypatch.setattr("tools.bench.serve.table.text_table", lambda results: "the table")
    assert demo.serve_and_report(tmp_path, tmp_path) == code
    said = capsys.readouterr()
    assert said.out.count("the table") == len(equal)
    assert ("did not reproduce" in said.err) == bool(code)
