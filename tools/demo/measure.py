"""Serve the demo's target alone, with SGLang's EAGLE3 and with PEAGLE: speed, acceptance, equality of output."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from tools.demo.head import HEADS
from tools.server import Server, cpu_environment, serve

NUM_DRAFT_TOKENS = (3, 5, 7)
CONCURRENCY = (1, 4)
NONE, EAGLE3, PEAGLE = "none", "EAGLE3", "PEAGLE"


@dataclass(frozen=True)
class Setup:
    """One server. k: drafts per step, 0 for no speculation."""

    algorithm: str
    k: int

    @property
    def name(self) -> str:
        return f"{self.algorithm} K={self.k}" if self.k else "no speculation"

    def arguments(self, directory: Path) -> list[str]:
        """What SGLang is told of its drafter; the head lies in the demo's `directory`."""
        if not self.k:
            return []
        arguments = ["--speculative-algorithm", self.algorithm, "--speculative-num-steps", str(self.k)]
        if self.algorithm == EAGLE3:
            arguments += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(self.k + 1)]
        return [*arguments, "--speculative-draft-model-path", str(directory / HEADS[self.algorithm.lower()])]


# Both heads at one K after each other: what changes on the machine over minutes meets both.
SETUPS = (Setup(NONE, 0), *(Setup(algorithm, k) for k in NUM_DRAFT_TOKENS for algorithm in (EAGLE3, PEAGLE)))


@dataclass(frozen=True)
class Run:
    """One line of the report. tok_per_s: output tokens of all requests / wall seconds of the whole run.

    accept_length: tokens per decode step, bonus included; accept_per_position[i]: share of steps whose first i+1 drafts
    were accepted; drafter_passes_per_step: as PEAGLE's worker counts them, None under EAGLE3, which does not count;
    outputs_equal: share of requests whose tokens equal the run without speculation at concurrency 1.
    """

    algorithm: str
    k: int
    concurrency: int
    tok_per_s: float
    accept_length: float
    accept_per_position: list[float]
    drafter_passes_per_step: float | None
    outputs_equal: float
    requests: int


def measure(directory: Path, prompts: list[list[int]], new_tokens: int) -> list[dict]:
    """All runs of the demo, one server after the other on the same machine, each warmed up before it is timed."""
    runs: list[Run] = []
    expected: list[list[int]] = []
    for setup in SETUPS:
        log = directory / "logs" / f"server-{setup.algorithm}-{setup.k}.log"
        arguments = ["--dtype", "float32", "--max-total-tokens", "16384", "--log-level", "warning"]
        arguments += setup.arguments(directory)
        print(f"starting the server: {setup.name}", flush=True)
        with serve(directory / "target", log, *arguments, environment=cpu_environment()) as server:
            for concurrency in CONCURRENCY:
                server.http.post("/flush_cache")  # every run reads its prompts anew
                for prompt in prompts[:4]:
                    server.generate(prompt[: len(prompt) // 2], 16)
                before = server.counters() if setup.algorithm == PEAGLE else None
                answers, seconds = ask(server, prompts, new_tokens, concurrency, setup.name)
                after = server.counters() if setup.algorithm == PEAGLE else None
                outputs = [answer["output_ids"] for answer in answers]
                expected = expected or outputs
                runs.append(summarise(setup, concurrency, answers, seconds, expected, before, after))
    return [asdict(run) for run in runs]


def ask(
    server: Server, prompts: list[list[int]], new_tokens: int, concurrency: int, name: str
) -> tuple[list[dict], float]:
    """Send all prompts, `concurrency` at a time; returns the answers in order and the wall seconds."""
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        jobs = pool.map(lambda prompt: server.generate(prompt, new_tokens), prompts)
        answers = list(tqdm(jobs, total=len(prompts), desc=f"{name}, {concurrency} at a time", unit="request"))
    return answers, time.perf_counter() - start


def summarise(
    setup: Setup, concurrency: int, answers: list[dict], seconds: float, expected: list[list[int]],
    before: dict | None, after: dict | None,
) -> Run:  # fmt: skip
    outputs = [answer["output_ids"] for answer in answers]
    accept_length, per_position = acceptance(answers, setup.k)
    passes = None if setup.k else 0.0
    if before is not None and after is not None:
        steps = after["decode_steps"] - before["decode_steps"]
        passes = (after["decode_drafter_passes"] - before["decode_drafter_passes"]) / steps
    return Run(
        algorithm=setup.algorithm,
        k=setup.k,
        concurrency=concurrency,
        tok_per_s=sum(map(len, outputs)) / seconds,
        accept_length=accept_length,
        accept_per_position=per_position,
        drafter_passes_per_step=passes,
        outputs_equal=sum(a == b for a, b in zip(outputs, expected, strict=True)) / len(outputs),
        requests=len(outputs),
    )


def acceptance(answers: list[dict], k: int) -> tuple[float, list[float]]:
    """(tokens per step, share of steps that accept drafts 1..i+1) from SGLang's histogram of correct drafts."""
    histogram = [0] * (k + 1)
    for answer in answers:
        for correct, steps in enumerate(answer["meta_info"].get("spec_correct_drafts_histogram", [])):
            histogram[correct] += steps
    steps = sum(histogram)
    if not steps:
        return 1.0, []
    per_position = [sum(histogram[i + 1 :]) / steps for i in range(k)]
    return 1.0 + sum(per_position), per_position
