"""From answers to numbers: the definitions behind every column of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles

from tools.bench.serve.client import Answer
from tools.bench.serve.datasets import Question
from tools.bench.serve.load import Measured


@dataclass(frozen=True)
class CategoryRow:
    """tok_per_s: of one request, prefill included, the mean over the category's requests."""

    requests: int
    tok_per_s: float
    accept_length: float


@dataclass(frozen=True)
class Row:
    """One server under one load.

    round: servers of one round took turns; k: drafts per step, 0 without speculation; simulated: the acceptance length
    that was made up, None when drafts were verified; tok_per_s: output tokens of all requests / seconds of the
    server's turns; speed_up: that over no speculation under the same load, of the same round where it took part;
    ttft_ms: from sending a request to its first token; itl_ms: mean time between the later tokens of a request (both:
    median and 99th percentile of the requests); accept_length: tokens per step, bonus included, prefills excluded;
    accept_per_position[i]: share of steps whose first i+1 drafts stood; drafter_passes_per_step: as PEAGLE counts them;
    outputs_equal: share of requests whose tokens are those of the first run without speculation, None where drafts were
    not verified or answers were sampled;
    memory_mib: of the server's processes so far, gpu_mib: on the GPUs; drafter_ms: a step's drafting on the device, of
    one request at a time, drafter_floor_ms: what reading its weights takes at the bandwidth of a copy.
    """

    round: int
    algorithm: str
    k: int
    dataset: str
    concurrency: int
    simulated: float | None
    requests: int
    output_tokens: int
    tok_per_s: float
    speed_up: float | None
    ttft_ms: float
    ttft_p99_ms: float
    itl_ms: float | None
    itl_p99_ms: float | None
    accept_length: float
    accept_per_position: list[float]
    drafter_passes_per_step: float | None
    outputs_equal: float | None
    memory_mib: float | None
    gpu_mib: float | None
    categories: dict[str, CategoryRow]
    drafter_ms: float | None = None
    drafter_floor_ms: float | None = None


def acceptance(histograms: Sequence[Sequence[int]], k: int) -> tuple[float, list[float]]:
    """Return (tokens per step, share of steps that accept drafts 1..i+1) of steps counted by their correct drafts.

    Without any step: (1.0, []), which is what decoding without speculation makes.
    """
    total = [0] * (k + 1)
    for histogram in histograms:
        for correct, steps in enumerate(histogram):
            total[correct] += steps
    steps = sum(total)
    if not steps:
        return 1.0, []
    per_position = [sum(total[i + 1 :]) / steps for i in range(k)]
    return 1.0 + sum(per_position), per_position


def speed(measured: Measured) -> float:
    return sum(len(answer.output_ids) for answer in flat(measured)) / measured.seconds


def flat(measured: Measured) -> list[Answer]:
    return [answer for turns in measured.answers for answer in turns]


def drafting_ms(measured: Measured, concurrency: int) -> float | None:
    """Return the milliseconds that drafting takes in a step.

    None unless requests came one at a time: only then is each request's step a step of the server.
    """
    steps = sum(answer.steps for answer in flat(measured))
    if concurrency > 1 or not steps or measured.drafting_seconds is None:
        return None
    return 1000 * measured.drafting_seconds / steps


def share_equal(measured: Measured, expected: Sequence[tuple[int, ...]] | None) -> float | None:
    """Return the share of outputs that equal those without speculation.

    expected: the output of each request without speculation, None when nobody measured it.
    """
    if expected is None:
        return None
    outputs = [answer.output_ids for answer in flat(measured)]
    return sum(a == b for a, b in zip(outputs, expected, strict=True)) / len(expected)


def percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def latencies(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Return the latency columns of a Row, milliseconds."""
    first = [1000 * answer.first_token_seconds for answer in answers]
    between = [1000 * s for answer in answers if (s := answer.seconds_per_token) is not None]
    return {
        "ttft_ms": median(first),
        "ttft_p99_ms": percentile(first, 99),
        "itl_ms": median(between) if between else None,
        "itl_p99_ms": percentile(between, 99) if between else None,
    }


def by_category(questions: Sequence[Question], measured: Measured) -> dict[str, CategoryRow]:
    k = measured.contender.k
    found: dict[str, list[Answer]] = {}
    for question, turns in zip(questions, measured.answers, strict=True):
        found.setdefault(question.category, []).extend(turns)
    return {
        name: CategoryRow(
            requests=len(answers),
            tok_per_s=fmean(len(answer.output_ids) / answer.seconds for answer in answers),
            accept_length=acceptance([answer.correct_drafts for answer in answers], k)[0],
        )
        for name, answers in found.items()
    }
