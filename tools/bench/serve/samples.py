"""Ask a few questions again, alone, and take the answers apart into steps: drafted, accepted, corrected."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tools.bench.serve.client import Answer, ask
from tools.bench.serve.contenders import NONE, SAMPLE, Contender
from tools.bench.serve.datasets import Question
from tools.bench.serve.load import open_client
from tools.bench.serve.metrics import acceptance
from tools.bench.serve.prompts import PromptWriter


@dataclass(frozen=True)
class Step:
    """The tokens that one step added: `accepted` drafts, then the target's own token (which a limit may cut off).

    drafted: all K drafts, None where the server does not tell them. merged: steps that arrived together, whose inner
    borders nobody knows; 1 as a rule. The prefill's first token is a step of 0 merged ones.
    """

    tokens: tuple[int, ...]
    accepted: int
    drafted: tuple[int, ...] | None = None
    merged: int = 1


@dataclass(frozen=True)
class ShownStep:
    """A Step in text. rejected: the drafts that did not stand."""

    tokens: list[str]
    accepted: int
    rejected: list[str]
    merged: int


@dataclass(frozen=True)
class Sample:
    """One answer to the first turn of a question, as the report shows it."""

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
    samples = []
    for contender in contenders:
        for i, question in enumerate(questions):
            if contender.algorithm == NONE:
                continue
            prompt = writer.write(question, [])
            rid = f"{SAMPLE}{contender.label}-{i}"
            answer = asyncio.run(_ask_alone(contender, prompt, sampling, rid))
            asked = question.turns[0] if question.turns else writer.text(prompt)
            contender.server.flush_cache()  # waits for the pass that begins before the server knows of the end
            taken = steps(answer, recorded_drafts(contender.records, rid))
            accept_length = acceptance([answer.correct_drafts], contender.k)[0]
            shown = _show(taken, writer)
            samples.append(
                Sample(
                    question.dataset, question.category, asked, contender.algorithm, contender.k, accept_length, shown
                )
            )
    return samples


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


def steps(answer: Answer, drafts: dict[int, tuple[int, ...]]) -> list[Step]:
    """Cut an answer where its chunks came. drafts: by the number of tokens known before, may be empty."""
    found: list[Step] = []
    start = verified = 0
    for chunk in answer.chunks:
        tokens, merged = answer.output_ids[start : chunk.tokens], chunk.steps - verified
        drafted = drafts.get(len(answer.prompt) + start) if merged == 1 else None
        found.append(Step(tokens, max(0, len(tokens) - merged) if merged else 0, drafted, merged))
        start, verified = chunk.tokens, chunk.steps
    # The last step may have been cut off by the limit or the end token: how many drafts stood, the server counts.
    correct = sum(n * times for n, times in enumerate(answer.correct_drafts))
    last = found.pop()
    accepted = min(len(last.tokens), correct - sum(step.accepted for step in found)) if last.merged else 0
    return [*found, replace(last, accepted=accepted)]


def _show(taken: list[Step], writer: PromptWriter) -> list[ShownStep]:
    pieces = iter(writer.pieces([token for step in taken for token in step.tokens]))
    return [
        ShownStep(
            tokens=[next(pieces) for _ in step.tokens],
            accepted=step.accepted,
            rejected=[str(writer.tokenizer.decode([d])) for d in (step.drafted or ())[step.accepted :]],
            merged=step.merged,
        )
        for step in taken
    ]
