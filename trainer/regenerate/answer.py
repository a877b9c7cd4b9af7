"""Read what an OpenAI-compatible server sent: a complete answer, or why there is none and whether to ask again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from peagle_core.errors import one_line
from trainer.chat.messages import CUT

# Ends of an answer: the model's own, and that of its room. Others ("abort", "content_filter") are no answers.
FINISHED = ("stop", CUT, "tool_calls")


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    reasoning: where the server separates it from the text; completion_tokens: None where it does not count them;
    tool_calls: as the server separates them from the text.
    """

    text: str
    finish_reason: str
    reasoning: str | None = None
    completion_tokens: int | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


class Refused(Exception):
    """The server will not answer this one request, now or later: it is too long, for instance."""


class RetryableError(Exception):
    """A failure that is worth retrying: overload, a lost connection, an incomplete answer.

    delay: seconds that the server wants to be left alone.
    """

    def __init__(self, reason: str, overloaded: bool = False, delay: float = 0.0) -> None:
        super().__init__(reason)
        self.overloaded, self.delay = overloaded, delay


def read_answer(content: Any) -> Answer:
    """Return the answer in the server's JSON. Raises RetryableError when it is no complete one."""
    try:
        choice = content["choices"][0]
        reason = choice["finish_reason"]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        reasoning = message.get("reasoning_content") or message.get("reasoning") or None
        text = message.get("content") or ""
        calls = tuple(message.get("tool_calls") or ())
        tokens = (content.get("usage") or {}).get("completion_tokens")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RetryableError("the answer has no choices with a text and a finish_reason") from None
    if reason not in FINISHED:
        raise RetryableError(f"the answer ended with finish_reason {reason!r}")
    if reason == CUT and isinstance(text, str):
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character, which the target never wrote
    if not _is_text(text) or not (reasoning is None or _is_text(reasoning)):
        raise RetryableError("the answer's content is no text")
    return Answer(text, reason, reasoning, tokens if isinstance(tokens, int) else None, calls)


def _is_text(value: Any) -> bool:
    try:
        return bool(value.encode() or True)
    except (AttributeError, UnicodeEncodeError):
        return False


def error_message(response: httpx.Response) -> str:
    """Return a server's error message, in one of the forms that servers use, in brackets for the end of a sentence."""
    try:
        content: Any = response.json()
    except ValueError:
        content = response.text
    for key in ("error", "detail", "message"):
        content = content.get(key, content) if isinstance(content, dict) else content
    return f" ({one_line(content)})" if str(content).strip() else ""


def wanted_delay(response: httpx.Response) -> float:
    """Return the seconds that a server wants to be left alone, 0 where it does not say."""
    wanted = response.headers.get("retry-after", "")
    return float(wanted) if wanted.isdecimal() else 0.0


def failure(error: httpx.RequestError) -> str:
    """Return why a request got no answer at all."""
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    return one_line(error)
