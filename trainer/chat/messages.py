"""Bring the messages of a record into the form in which SGLang's OpenAI endpoint hands them to a chat template.

Source: `protocol.py` (the fields that a message keeps) and `serving_chat.py` (what becomes of them) of SGLang 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peagle_core.errors import InputError
from trainer.chat.tools import served_tool_calls, served_tools

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool", "developer", "function", "root", "latest_reminder")
# What the endpoint keeps of a message that is not the user's, beside role, content and calls.
KEPT = ("tool_call_id", "name", "phase", "tools")
# Under which records and chat templates have the reasoning of a message; the endpoint knows the first.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
TEXT_PARTS, REASONING_PARTS = ("text", "input_text", "output_text"), ("thinking", "reasoning")
# The finish_reason of an answer that reached its maximum length, as OpenAI-compatible servers say.
CUT = "length"


@dataclass(frozen=True)
class Conversation:
    """A chat in the endpoint's form.

    messages: reasoning stands under reasoning_content; answers: the numbers of the messages that the target is to have
    said; cut: those of them that reached their maximum length; unprompted: how many assistant messages are context
    only, because nothing asked for them.
    """

    messages: tuple[Message, ...]
    tools: list[dict[str, Any]] | None
    answers: tuple[int, ...]
    cut: frozenset[int]
    unprompted: int


def conversation(messages: Any, tools: Any = None, first_answer: int = 0) -> Conversation:
    """Return the conversation of a record's `messages` and `tools`. Raises InputError for what is malformed.

    An assistant message before the first user message (a greeting), or behind another assistant message, is context:
    the endpoint never asks for one. So are those before number first_answer, and those of `weight` 0.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError("'messages' must be a list of objects with 'role' and 'content'")
    served = tuple(_at(number, message) for number, message in enumerate(messages))
    roles = [message["role"] for message in served]
    asked = roles.index("user") if "user" in roles else len(roles)
    said = [i for i, role in enumerate(roles) if role == "assistant" and i >= first_answer]
    said = [i for i in said if messages[i].get("weight") != 0]  # as OpenAI's fine-tuning files mark what is context
    answers = tuple(i for i in said if i > asked and roles[i - 1] != "assistant")
    cut = frozenset(i for i in answers if messages[i].get("finish_reason") == CUT)
    return Conversation(served, served_tools(tools), answers, cut, len(said) - len(answers))


def served_message(message: Message) -> Message:
    """Return one message as a template gets it; None values are left out, no content is ''. Raises InputError."""
    role = message["role"]
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise InputError(f"has the role {role!r}, not one of {', '.join(ROLES)}")
    content, thought = _content(message.get("content"), role.lower())
    served: Message = {"role": role.lower(), "content": content}
    if served["role"] == "user":
        return served
    served |= {key: message[key] for key in KEPT if message.get(key) is not None}
    if served["role"] != "assistant":
        return served
    for key in REASONING_KEYS:
        if message.get(key) is not None and not isinstance(message[key], str):
            raise InputError(f"has a {key!r} that is no text")
    reasoning = next((message[key] for key in REASONING_KEYS if message.get(key)), thought)
    if reasoning:
        served["reasoning_content"] = reasoning
    if calls := served_tool_calls(message):
        served["tool_calls"] = calls
    return served


def text_of(message: Message) -> str:
    """Return the text of a served message, its parts joined."""
    content = message["content"]
    return content if isinstance(content, str) else join_parts(content)


def join_parts(parts: Sequence[dict[str, Any]]) -> str:
    """Return text parts as one text, as the endpoint joins them for templates that want a text."""
    return " ".join(part["text"] for part in parts)


def _at(number: int, message: Message) -> Message:
    try:
        return served_message(message)
    except InputError as error:
        raise InputError(f"message {number} {error}") from None


def _content(content: Any, role: str) -> tuple[str | list[dict[str, str]], str]:
    """Return (content, the reasoning that stood in its parts)."""
    if content is None and role != "user":
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise InputError("has no 'content', which must be a text or a list of parts")
    parts, thoughts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise InputError(f"has a part of type {kind!r} in its content whose 'text' is no text")
            parts.append({"type": "text", "text": part["text"]})
        elif kind in REASONING_PARTS and role == "assistant":
            thoughts.append(str(part.get("thinking") or part.get("text") or ""))
        else:
            raise InputError(f"has a part of type {kind!r} in its content; a drafter learns from text parts alone")
    if role == "tool":  # for which the endpoint joins them whatever the template wants
        return join_parts(parts), ""
    return parts, "\n".join(thoughts)
