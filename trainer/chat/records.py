"""Find the chat in a record, whatever it is called: `messages`, ShareGPT's `conversations`, TRL's lists, `turns`."""

from __future__ import annotations

from typing import Any

from peagle_core.errors import InputError
from trainer.chat.messages import Conversation, conversation

# Names that ShareGPT collections use, and the roles of chat templates.
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip


def is_chat(record: dict[str, Any]) -> bool:
    """Tell whether a record holds a chat, and not running text or tokens."""
    prompt = record.get("prompt")
    named = any(key in record for key in ("messages", "conversations", "turns"))
    return named or (isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt))


def chat_of(record: dict[str, Any]) -> Conversation:
    """Return the chat of a record. Raises InputError for a malformed one.

    A `system` text beside the chat is its first message. Of TRL's `prompt` and `completion` only what the completion
    says is an answer. `turns`, as benchmarks have them, are a user's questions, of which the first can be asked.
    """
    messages, first_answer = raw_messages(record), 0
    if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
        first_answer = len(messages) - len(record["completion"])
    return conversation(messages, record.get("tools"), first_answer)


def raw_messages(record: dict[str, Any]) -> list[Any]:
    """Return the messages of a record as it has them, under the names of chat templates. Raises InputError."""
    if "messages" in record:
        messages = record["messages"]
    elif "conversations" in record:
        messages = sharegpt_messages(record["conversations"])
    elif "turns" in record:
        messages = _asked_first(record["turns"])
    else:
        completion = record.get("completion", [])
        if not isinstance(completion, list):
            raise InputError("'completion' must be a list of messages where 'prompt' is one")
        messages = record["prompt"] + completion
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise InputError("'messages' must be a list of objects with 'role' and 'content'")
    if isinstance(record.get("system"), str) and record["system"] and not any(m["role"] == "system" for m in messages):
        return [{"role": "system", "content": record["system"]}, *messages]
    return messages


def sharegpt_messages(conversations: Any) -> Any:
    """Turn [{"from", "value"}, ...] into [{"role", "content"}, ...]; a list that has roles already is taken as it is.

    Such collections often begin in the middle of a talk: answers before the first question are left out, for nothing
    prompted them. Raises InputError for a speaker that is not known.
    """
    if not isinstance(conversations, list) or not all(isinstance(turn, dict) for turn in conversations):
        raise InputError("'conversations' must be a list of objects with 'from' and 'value'")
    if all("role" in turn for turn in conversations):
        return conversations
    messages = []
    for turn in conversations:
        if not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise InputError("'conversations' must be a list of objects with 'from' and 'value'")
        if turn["from"] not in SHAREGPT_ROLES:
            raise InputError(
                f"'conversations' has the speaker {turn['from']!r}, not one of {', '.join(SHAREGPT_ROLES)}"
            )
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    asked = [message["role"] == "user" for message in messages]
    first = asked.index(True) if any(asked) else len(messages)
    return [m for i, m in enumerate(messages) if i > first or m["role"] != "assistant"]


def _asked_first(turns: Any) -> Any:
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return [{"role": "user", "content": turns[0]}]
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        return turns
    raise InputError("'turns' must be a list of questions, or of messages with 'role' and 'content'")
