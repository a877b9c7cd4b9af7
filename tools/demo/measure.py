"""Serve the demo's target alone, with SGLang's EAGLE3 and with PEAGLE: speed, acceptance, equality of output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from peagle_core.serve_command import sglang_arguments
from tools.demo.head import HEADS
from tools.server import Server, ask_all, cpu_environment, serve

NUM_DRAFT_TOKENS = (3, 5, 7)
CONCURRENCY = (1, 4)
NONE, EAGLE3, PEAGLE = ALGORITHMS = ("none", "EAGLE3", "PEAGLE")
BLOCK = 8  # prompts of one turn: a few seconds, shorter than a machine's slow spells
SERVER = ("--dtype", "float32", "--max-total-tokens", "16384", "--log-level", "warning", "--sleep-on-idle")


@dataclass(frozen=True)
class Run:
    """One line of the report: one server in one round. A round is the three servers of one K taking turns.

    k: drafts per step of the round's heads; the server without speculation takes part in every round. tok_per_s: output
    tokens of all requests / wall seconds of all turns; speed_up: that over what the server without speculation makes in
    the same round; accept_length: tokens per decode step, bonus included; accept_per_position[i]: share of steps whose
    first i+1 drafts were accepted; drafter_passes_per_step: as PEAGLE's worker counts them, None under EAGLE3, which
    does not count; outputs_equal: share of requests whose tokens equal those of the first run without speculation.
    """

    algorithm: str
    k: int
    concurrency: int
    tok_per_s: float
    speed_up: float
    accept_length: float
    accept_per_position: list[float]
    drafter_passes_per_step: float | None
    outputs_equal: float
    requests: int


@dataclass
class Side:
    """What one server has answered in its turns of a round, in the prompts' order, and the wall seconds of these."""

    algorithm: str
    answers: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    drafter_passes_per_step: float | None = None

    @property
    def outputs(self) -> list[list[int]]:
        return [answer["output_ids"] for answer in self.answers]

    @property
    def tok_per_s(self) -> float:
        return sum(map(len, self.outputs)) / self.seconds


def measure(directory: Path, prompts: list[list[int]], new_tokens: int) -> list[dict]:
    """All runs of the demo. What the machine does over minutes meets the three servers of a round alike."""
    runs: list[Run] = []
    expected: list[list[int]] = []
    for k in NUM_DRAFT_TOKENS:
        print(f"starting three servers: no speculation, EAGLE3 K={k}, PEAGLE K={k}", flush=True)
        with serve_all(directory, k) as servers:
            for concurrency in CONCURRENCY:
                sides = take_turns(servers, prompts, new_tokens, concurrency, f"K={k}, {concurrency} at a time")
                expected = expected or sides[0].outputs
                runs += [summarise(side, k, concurrency, sides[0].tok_per_s, expected) for side in sides]
    return [asdict(run) for run in runs]


def drafting(directory: Path, algorithm: str, k: int) -> list[str]:
    """What SGLang is told of its drafter; the head lies in the demo's `directory`."""
    if algorithm == NONE:
        return []
    return sglang_arguments(str(directory / HEADS[algorithm.lower()]), k, autoregressive=algorithm == EAGLE3)


@contextmanager
def serve_all(directory: Path, k: int) -> Iterator[dict[str, Server]]:
    """The three servers of one K, started at the same time. Raises RuntimeError when one does not come up."""

    def start(algorithm: str) -> Server:
        log = directory / "logs" / f"server-{algorithm}-{k}.log"
        arguments = [*SERVER, *drafting(directory, algorithm, k)]
        return stack.enter_context(serve(directory / "target", log, *arguments, environment=cpu_environment()))

    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(start, ALGORITHMS))
        yield dict(zip(ALGORITHMS, servers, strict=True))


def take_turns(
    servers: dict[str, Server], prompts: list[list[int]], new_tokens: int, concurrency: int, name: str
) -> list[Side]:
    """Every server answers every prompt, BLOCK of them a turn, `concurrency` at a time; one Side for each server."""
    for server in servers.values():
        for prompt in prompts[:4]:
            server.generate(prompt, 16)
        # Every prompt is read anew; the server needs a moment to see that nothing runs.
        server.http.post("/flush_cache", params={"timeout": 10}).raise_for_status()
    sides = [Side(algorithm) for algorithm in servers]
    before = servers[PEAGLE].counters()
    with tqdm(total=len(servers) * len(prompts), desc=name, unit="request", dynamic_ncols=True) as bar:
        for first in range(0, len(prompts), BLOCK):
            for side, server in zip(sides, servers.values(), strict=True):
                start = time.perf_counter()
                answers = ask_all(server, prompts[first : first + BLOCK], new_tokens, concurrency)
                side.seconds += time.perf_counter() - start
                side.answers += answers
                bar.update(len(answers))
    after = servers[PEAGLE].counters()
    steps, passes = (after[name] - before[name] for name in ("decode_steps", "decode_drafter_passes"))
    for side in sides:
        side.drafter_passes_per_step = {NONE: 0.0, EAGLE3: None, PEAGLE: passes / steps}[side.algorithm]
    return sides


def summarise(side: Side, k: int, concurrency: int, plain_tok_per_s: float, expected: list[list[int]]) -> Run:
    """plain_tok_per_s: what the server without speculation made in the same round; expected: tokens of each request."""
    accept_length, per_position = acceptance(side.answers, k)
    return Run(
        algorithm=side.algorithm,
        k=k,
        concurrency=concurrency,
        tok_per_s=side.tok_per_s,
        speed_up=side.tok_per_s / plain_tok_per_s,
        accept_length=accept_length,
        accept_per_position=per_position,
        drafter_passes_per_step=side.drafter_passes_per_step,
        outputs_equal=sum(a == b for a, b in zip(side.outputs, expected, strict=True)) / len(expected),
        requests=len(expected),
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
