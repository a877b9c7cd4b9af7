"""tools.judges.vllm without vLLM: what goes to the worker, what comes back, what is said when it fails.

A stand-in for the package takes vLLM's place where the worker itself runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peagle_core.errors import InputError
from tools.judges import vllm
from tools.judges.vllm import Case, Step, last_words, serve_in_vllm


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
    interpreter(environment, f'echo hello; cp "$2" {environment}/asked; cp {environment}/answer "$3"')
    served = serve_in_vllm([Case("target", [[1, 2]], 3, head="head")], environment / "logs" / "log")
    assert served[0].accept_length == 2.5
    assert served[0].steps == [[Step([7], [8, 9])]]
    asked = json.loads((environment / "asked").read_text())
    assert asked[0]["prompts"] == [[1, 2]] and asked[0]["head"] == "head" and asked[0]["parallel"]
    assert (environment / "logs" / "log").read_text() == "hello\n"


STAND_IN = """
from types import SimpleNamespace as Some

class LLM:
    def __init__(self, target, speculative_config, **rest):
        self.drafts = speculative_config["num_speculative_tokens"]
        self.llm_engine = Some(engine_core=Some(shutdown=lambda: None))

    def generate(self, prompts, sampling, use_tqdm):
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
        runner = GPUModelRunner()
        for number, prompt in enumerate(prompts):
            runner.input_batch = Some(req_ids=[f"{number}-abc"])
            runner.propose_draft_token_ids(None, Some(tolist=lambda: [[prompt["prompt_token_ids"][0], -1]]))
        return [Some(request_id=str(i), outputs=[Some(token_ids=(7, 8))]) for i in range(len(prompts))]

    def get_metrics(self):
        return [Some(name="vllm:spec_decode_num_drafts", value=2)]

SamplingParams = TokensPrompt = dict
"""
RUNNER = """
from types import SimpleNamespace as Some

class GPUModelRunner:
    def propose_draft_token_ids(self, scheduler_output, sampled_token_ids):
        return Some(tolist=lambda: [[1, 2]])
"""


def test_the_worker_imports_the_package_and_not_our_module_of_its_name(environment, tmp_path):
    runner = tmp_path / "packages" / "vllm" / "v1" / "worker"
    runner.mkdir(parents=True)
    (runner / "gpu_model_runner.py").write_text(RUNNER)
    (runner.parents[1] / "__init__.py").write_text(STAND_IN)
    interpreter(environment, f'PYTHONPATH={tmp_path / "packages"} exec {sys.executable} "$@"')
    (served,) = serve_in_vllm([Case("target", [[5], [6]], 2, head="head")])
    assert served.outputs == [[7, 8], [7, 8]]
    assert served.steps == [[Step([5], [1, 2])], [Step([6], [1, 2])]]
    assert (served.num_drafts, served.num_accepted) == (2, 0)


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
