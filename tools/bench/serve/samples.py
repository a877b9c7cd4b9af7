"""Ask a few questions again, alone, and take the answers apart into steps: drafted, accepted, corrected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import safe_open

from tools.bench.serve.client import Answer, ask
from tools.bench.serve.contenders import NONE, SAMPLE, Contender
from tools.bench.serve.datasets import Question
from tools.bench.serve.load import open_client
from tools.bench.serve.metrics import acceptance
from tools.bench.serve.prompts import PromptWriter

ATTEMPTS = 3


@dataclass(frozen=True)
class Step:
    """The tokens that one step added: `accepted` drafts, then the target's own token (which a limit may cut off).

    drafted: all K drafts, None where the server does not tell them.
    """

    tokens: tuple[int, ...]
    accepted: int
    drafted: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ShownStep:
    """A Step in text. rejected: the drafts that did not stand."""

    tokens: list[str]
    accepted: int
    rejected: list[str]


@dataclass(frozen=True)
class Sample:
    """One answer to the first turn of a question, as the report shows it. steps: the first is the prefill's token."""

    dataset: str
    category: str
    question: str
    algorithm: str
    k: int
    accept_length: float
    steps: list[ShownStep]


def take_samples(
    contenders: Sequence[Contender], questions: Sequence[Question], writer: PromptWriter, sampling: dict[str, Any]
) -> list[Sample]:
    """Ask every server that drafts every question, one after the other."""
    drafting = [contender for contender in contenders if contender.algorithm != NONE]
    taken = [_take(contender, question, writer, sampling) for contender in drafting for question in questions]
    return [sample for sample in taken if sample is not None]


def _take(contender: Contender, question: Question, writer: PromptWriter, sampling: dict[str, Any]) -> Sample | None:
    """Ask until every step came as a chunk of its own; None when two of them came together each time."""
    prompt = writer.write(question, [])
    for _ in range(ATTEMPTS):
        rid = f"{SAMPLE}{uuid4()}"
        answer = asyncio.run(_ask_alone(contender, prompt, sampling, rid))
        contender.server.flush_cache()  # waits for the pass that begins before the server knows of the end
        drafts = recorded_drafts(contender.records, rid)
        if len(answer.chunks) == 1 + answer.steps:
            return Sample(
                dataset=question.dataset,
                category=question.category,
                question=question.turns[0] if question.turns else writer.text(prompt),
                algorithm=contender.algorithm,
                k=contender.k,
                accept_length=acceptance([answer.correct_drafts], contender.k)[0],
                steps=_show(cut(answer, drafts), writer),
            )
    return None


async def _ask_alone(contender: Contender, prompt: list[int], sampling: dict[str, Any], rid: str) -> Answer:
    async with open_client(contender) as http:
        return await ask(http, prompt, sampling, rid)


def recorded_drafts(records: Path | None, rid: str) -> dict[int, tuple[int, ...]]:
    """Read what the worker recorded of one request: its drafts by the number of tokens known before. Removes it all."""
    drafts: dict[int, tuple[int, ...]] = {}
    for path in sorted(records.glob("pass-*.safetensors")) if records else []:
        with safe_open(path, "pt") as file:
            mine = [i for i, other in enumerate(json.loads(file.metadata()["rids"])) if other == rid]
            known, drafted = file.get_tensor("known").tolist(), file.get_tensor("drafts").tolist()
        drafts |= {int(known[i]): tuple(drafted[i]) for i in mine}
        path.unlink()
    return drafts


def cut(answer: Answer, drafts: dict[int, tuple[int, ...]]) -> list[Step]:
    """Cut an answer into its steps, which came a chunk each; the first is the prefill's, which verifies nothing.

    drafts: by the number of tokens known before, may be empty.
    """
    ends = [chunk.tokens for chunk in answer.chunks]
    found = [Step(answer.output_ids[: ends[0]], 0)]
    for start, end in pairwise(ends):
        found.append(Step(answer.output_ids[start:end], end - start - 1, drafts.get(len(answer.prompt) + start)))
    if len(found) == 1:
        return found
    # The last step may have been cut off by the limit or the end token: how many drafts stood, the server counts.
    last = found.pop()
    stood = sum(n * times for n, times in enumerate(answer.correct_drafts)) - sum(step.accepted for step in found)
    if stood < len(last.tokens):
        return [*found, replace(last, accepted=stood)]
    return [*found, replace(last, accepted=len(last.tokens), drafted=(last.drafted or ())[: len(last.tokens)] or None)]


def _show(taken: list[Step], writer: PromptWriter) -> list[ShownStep]:
    pieces = iter(writer.pieces([token for step in taken for token in step.tokens]))
    return [
        ShownStep(
            tokens=[next(pieces) for _ in step.tokens],
            accepted=step.accepted,
            rejected=[str(writer.tokenizer.decode([d])) for d in (step.drafted or ())[step.accepted :]],
        )
        for step in taken
    ]
