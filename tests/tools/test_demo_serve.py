"""The demo measures with the serving benchmark, and fails when an output is not that of no speculation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.demo import __main__ as demo
from tools.demo import serve
from tools.demo.corpus import PROMPT_TOKENS


def test_the_demo_asks_every_server_for_the_same_greedy_tokens(tmp_path):
    study = serve.demo_study(tmp_path)
    assert study.servers.rounds() == [[("none", 0), ("EAGLE3", k), ("PEAGLE", k)] for k in (3, 5, 7)]
    assert study.servers.heads == {"EAGLE3": tmp_path / "eagle3-head", "PEAGLE": tmp_path / "head"}
    (questions,) = study.questions.values()
    prompts = [study.writer.write(question, []) for question in questions]
    assert len(prompts) == serve.REQUESTS
    assert {len(prompt) for prompt in prompts} == {PROMPT_TOKENS}
    assert study.sampling == {"max_new_tokens": 128, "temperature": 0, "ignore_eos": True}


@pytest.mark.parametrize(("equal", "code"), [(1.0, 0), (0.97, 1)])
def test_it_fails_when_an_output_differs(monkeypatch, tmp_path, capsys, equal, code):
    monkeypatch.setattr(serve, "serve", lambda directory: SimpleNamespace(rows=[SimpleNamespace(outputs_equal=equal)]))
    monkeypatch.setattr("tools.bench.serve.table.text_table", lambda results: "the table")
    assert demo.serve_and_report(tmp_path) == code
    said = capsys.readouterr()
    assert "the table" in said.out
    assert ("did not reproduce" in said.err) == bool(code)
