"""Turn a record of the data into what the target is asked, and its answers into a record.

A conversation is asked turn by turn: what was said before an answer, with the target's own earlier answers in it. Every
assistant turn of the data is replaced; a conversation that ends with a question gets its answer too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError
from trainer.chat.messages import served_message
from trainer.chat.reasoning import THINKING_ENDS, AnswerForm
from trainer.chat.records import is_chat, raw_messages
from trainer.chat.tokens import check_text
from trainer.chat.tools import served_tools
from trainer.data.documents import SKIP_HINT
from trainer.data.source_names import HUB
from trainer.data.sources import Part, read
from trainer.regenerate.answer import Answer, Refused
from trainer.regenerate.openai_server import AnswerServer

Message = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What a record asks.

    origin: where it comes from, as the answer's record says. And one of these: prompt, a text to continue; turns,
    what is said before each answer of a conversation; unasked, the messages of a conversation without a question.
    tools: what the target may call in a conversation.
    """

    origin: dict[str, Any]
    turns: tuple[tuple[Message, ...], ...] = ()
    prompt: str | None = None
    unasked: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def is_chat(self) -> bool:
        return self.prompt is None


def questions(sources: Sequence[str], skipped: Counter[str] | None = None) -> Iterator[Question]:
    """Yield one question for every record, in order.

    skipped: counts the records that cannot be asked, by reason; None: raises InputError naming the place of the first.
    """
    for source in sources:
        name = source if source.startswith(HUB) else Path(source).name
        for where, record in read(Part(source)):
            within = where.removeprefix(source).removeprefix(str(Path(source)))
            try:
                if isinstance(record, InputError):
                    raise record
                yield question(record, name + within)
            except InputError as error:
                if skipped is None:
                    raise InputError(f"{where}: {error}; {SKIP_HINT}") from None
                skipped[str(error)] += 1


def question(record: Any, place: str) -> Question:
    """Return what a record asks.

    Raises InputError for tokens, plain text, tool calls, and what is no record of trainer.data.record_tokens.
    """
    if not isinstance(record, dict):
        raise InputError("a JSON object was expected")
    origin = {"source": place} | ({"id": record["id"]} if isinstance(record.get("id"), str | int) else {})
    if "input_ids" in record:
        raise InputError("is tokenised; regenerate needs 'messages', 'conversations' or 'prompt'")
    _check_values(*(record.get(key) for key in ("messages", "conversations", "turns", "prompt", "tools")))
    if is_chat(record):
        tools = served_tools(record.get("tools")) or []
        found = _conversation(raw_messages(record), origin, tuple(map(_as_said, tools)))
    elif "text" in record:
        raise InputError("is plain text, which asks nothing; give the part that the target shall continue as 'prompt'")
    elif "prompt" in record:
        if not isinstance(record["prompt"], str) or not record["prompt"]:
            raise InputError("'prompt' must be a string that is not empty")
        found = Question(origin, prompt=record["prompt"])
    else:
        raise InputError(f"has keys {sorted(record)}, expected 'messages', 'conversations' or 'prompt'")
    _check_values(found.origin, found.prompt, *found.turns, found.unasked, found.tools)
    return found


def _conversation(raw: list[Any], origin: dict[str, Any], tools: tuple[dict[str, Any], ...]) -> Question:
    messages: list[Message] = []
    for number, said in enumerate(raw):
        if said.get("tool_calls") or said.get("function_call"):
            raise InputError(f"message {number} calls tools, which regenerate cannot ask for again")
        try:
            messages.append(served_message(said))
        except InputError as error:
            raise InputError(f"message {number} {error}") from None
    turns: list[list[Message]] = []
    before = "assistant"
    asked = [message["role"] == "user" for message in messages]
    first = asked.index(True) if any(asked) else len(messages)
    kept = [m for i, m in enumerate(messages) if i > first or m["role"] != "assistant"]
    if not any(asked):
        return Question(origin, unasked=tuple(kept))
    for message in kept:
        if message["role"] != "assistant":
            if before == "assistant":
                turns.append([])
            turns[-1].append(message)
        before = message["role"]
    return Question(origin, tuple(map(tuple, turns)), tools=tools)


def _as_said(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool in OpenAI's form with what its record says, and nothing else."""
    return {"type": tool["type"], "function": {k: v for k, v in tool["function"].items() if v is not None}}


def _check_values(*values: Any) -> None:
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise InputError("has a value that JSON does not have") from None
    check_text(text)


async def answered(
    question: Question, server: AnswerServer, seed: int | None, reasoning: AnswerForm | None
) -> dict[str, Any]:
    """Ask, and return the record with the answers; 'error' says why the server refused, if it did.

    seed: of this record's sampling. Raises InputError when the server is gone or talks nonsense, and for reasoning that
    the target's chat template would lose.
    """
    record = dict(question.origin)
    answers: list[Answer] = []
    try:
        if question.prompt is None:
            assert reasoning is not None
            record |= {"tools": list(question.tools)} if question.tools else {}
            record["messages"] = list(question.unasked)
            await _converse(question, server, seed, reasoning, record["messages"], answers)
        else:
            record |= {"prompt": question.prompt, "response": ""}
            answers.append(await server.complete(question.prompt, seed))
            record |= {"response": answers[0].text, "finish_reason": answers[0].finish_reason}
    except Refused as refusal:
        record["error"] = str(refusal)
    counts = [answer.completion_tokens for answer in answers]
    return record if None in counts else record | {"completion_tokens": sum(c for c in counts if c is not None)}


async def _converse(
    question: Question,
    server: AnswerServer,
    seed: int | None,
    reasoning: AnswerForm,
    written: list[Message],
    answers: list[Answer],
) -> None:
    """Add to `written` and `answers` one by one, so that a refusal leaves what came before it."""
    asked: list[Message] = []
    for turn in question.turns:
        asked += turn
        written += turn
        answer = await server.chat(asked, seed, question.tools)
        answers.append(answer)
        asked.append(_message(answer, "reasoning_content"))
        written.append(_message(answer, _shown(answer, reasoning)) | {"finish_reason": answer.finish_reason})
        if answer.tool_calls:  # nobody here can run a tool, so there is nothing to go on with
            return


def _message(answer: Answer, reasoning_key: str) -> Message:
    message: Message = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        message["tool_calls"] = list(answer.tool_calls)
    return message if answer.reasoning is None else {**message, reasoning_key: answer.reasoning}


def _shown(answer: Answer, reasoning: AnswerForm) -> str:
    """Return the key for the answer's reasoning, if it has any. Raises InputError when the template would lose it."""
    if answer.reasoning is not None and reasoning.key is None:
        raise InputError(
            "the server gives the reasoning apart from the answer, but the target's chat template does not show it, so "
            "it would be lost; start the server without --reasoning-parser"
        )
    if THINKING_ENDS in answer.text and not reasoning.in_text:
        raise InputError(
            f"an answer has its reasoning in its text (up to {THINKING_ENDS}), where the target's chat template drops "
            "it, so it would be lost; give the target's tokenizer a template that shows it"
        )
    return reasoning.key or ""
