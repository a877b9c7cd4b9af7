"""Send a data set to servers that take turns: whatever the machine does over minutes meets all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx

from peagle_core.errors import InputError
from tools.bench.serve.client import Answer, ask
from tools.bench.serve.contenders import Contender
from tools.bench.serve.datasets import Question
from tools.bench.serve.drafter_time import drafting_seconds
from tools.bench.serve.prompts import PromptWriter

WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """What every server is asked. sampling: SGLang's sampling parameters; concurrency: conversations at a time."""

    questions: Sequence[Question]
    writer: PromptWriter
    sampling: dict[str, Any]
    concurrency: int

    @property
    def requests(self) -> int:
        return sum(map(self.writer.turns, self.questions))

    @property
    def block(self) -> int:
        """Return the number of questions of one turn: a few waves of them, shorter than a machine's slow spells."""
        return max(8, 2 * self.concurrency)


@dataclass(frozen=True)
class Measured:
    """One server's part. answers: for each question its turns; seconds: of the wall, over this server's turns.

    drafting_seconds: of the device, None where the server does not tell.
    """

    contender: Contender
    answers: list[list[Answer]]
    seconds: float
    drafter_passes_per_step: float | None
    drafting_seconds: float | None = None


def take_turns(contenders: Sequence[Contender], load: Load, on_answer: Callable[[], object]) -> list[Measured]:
    """Let every server answer every question, `load.block` of them a turn; return one Measured each, in order."""
    for contender in contenders:
        _warm_up(contender, load)
    answers: list[list[list[Answer]]] = [[] for _ in contenders]
    seconds = [0.0] * len(contenders)
    before = [_counters(contender) for contender in contenders]
    drafted = [drafting_seconds(contender.server.http) for contender in contenders]
    for first in range(0, len(load.questions), load.block):
        for i, contender in enumerate(contenders):
            start = perf_counter()
            answers[i] += asyncio.run(_converse(contender, load, load.questions[first : first + load.block], on_answer))
            seconds[i] += perf_counter() - start
    passes = [_passes_per_step(was, _counters(c)) for was, c in zip(before, contenders, strict=True)]
    more = [_more(was, drafting_seconds(c.server.http)) for was, c in zip(drafted, contenders, strict=True)]
    return [Measured(*parts) for parts in zip(contenders, answers, seconds, passes, more, strict=True)]


def _more(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


async def _converse(
    contender: Contender, load: Load, questions: Sequence[Question], on_answer: Callable[[], object]
) -> list[list[Answer]]:
    """Hold the conversations, `load.concurrency` at a time; the first that fails ends the others."""
    places = asyncio.Semaphore(load.concurrency)

    async def hold(question: Question) -> list[Answer]:
        async with places:
            answers: list[Answer] = []
            for _ in range(load.writer.turns(question)):
                prompt = load.writer.write(question, [load.writer.text(answer.output_ids) for answer in answers])
                answers.append(await ask(http, prompt, load.sampling))
                on_answer()
            return answers

    async with open_client(contender) as http:
        return await asyncio.gather(*map(hold, questions))


def open_client(contender: Contender) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=contender.server.http.base_url, timeout=600, limits=limits)


def _warm_up(contender: Contender, load: Load) -> None:
    """Ask a few questions for a few tokens at the load's concurrency, then forget them: every prompt is read anew."""
    few = load.questions[: max(4, load.concurrency)]
    short = Load(few, load.writer, {**load.sampling, "max_new_tokens": WARM_UP_TOKENS}, load.concurrency)
    asyncio.run(_converse(contender, short, few, lambda: None))
    try:
        contender.server.flush_cache()
    except httpx.HTTPError as error:
        raise InputError(f"{contender.label} does not empty its cache: {error}") from error


def _counters(contender: Contender) -> dict[str, int]:
    """Return what our worker counts, nothing for another server."""
    states = contender.server.http.get("/server_info").json().get("internal_states") or [{}]
    return states[0].get("peagle") or {}


def _passes_per_step(before: dict[str, int], after: dict[str, int]) -> float | None:
    steps = after.get("decode_steps", 0) - before.get("decode_steps", 0)
    if not steps:
        return None
    return (after["decode_drafter_passes"] - before["decode_drafter_passes"]) / steps
