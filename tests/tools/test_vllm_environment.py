"""tools.vllm without vLLM: what goes to the worker, what comes back, what is said when it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peagle_core.errors import InputError
from tools import vllm
from tools.vllm import Case, Step, last_words, serve_in_vllm


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """An installed one, whose interpreter is still to be written."""
    monkeypatch.setattr(vllm, "ENVIRONMENT", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    return tmp_path


def interpreter(environment: Path, script: str) -> None:
    path = environment / "bin" / "python"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def test_cases_out_and_answers_back(environment):
    answer = {"outputs": [[7, 8]], "steps": [[{"emitted": [7], "drafts": [8, 9]}]], "drafts": 4, "accepted": 6}
    (environment / "answer").write_text(json.dumps([answer]))
    interpreter(environment, f'echo hello; cp "$3" {environment}/asked; cp {environment}/answer "$4"')
    served = serve_in_vllm([Case("target", [[1, 2]], 3, head="head")], environment / "logs" / "log")
    assert served[0].accept_length == 2.5
    assert served[0].steps == [[Step([7], [8, 9])]]
    asked = json.loads((environment / "asked").read_text())
    assert asked[0]["prompts"] == [[1, 2]] and asked[0]["head"] == "head" and asked[0]["parallel"]
    assert (environment / "logs" / "log").read_text() == "hello\n"


def test_failures(environment):
    interpreter(environment, "echo 'ValueError: no such head'; echo; echo 'Exception ignored'; exit 1")
    with pytest.raises(InputError, match="vLLM failed: ValueError: no such head"):
        serve_in_vllm([Case("target", [[1]], 3)])
    (environment / ".installed").unlink()
    with pytest.raises(InputError, match="not installed"):
        serve_in_vllm([Case("target", [[1]], 3)])


def test_last_words():
    assert last_words("a\nKeyError: 'x'\nvalidation.ValidationError: bad\nbye\n") == "validation.ValidationError: bad"
    assert last_words("killed\n") == "killed"
    assert last_words("") == "it said nothing"
