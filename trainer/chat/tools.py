"""Bring tools and tool calls of a record into the form in which SGLang's OpenAI endpoint hands them to a template."""

from __future__ import annotations

import json
from typing import Any

from peagle_core.errors import InputError

# What the endpoint keeps of a function; the first three are there in every schema, as null where nobody said them.
FUNCTION_KEYS = ("description", "name", "parameters", "strict", "defer_loading")
ALWAYS = FUNCTION_KEYS[:3]


def served_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Return a record's `tools` as templates get them; None where it has none.

    Takes OpenAI's form, functions without their wrapper, and either as a JSON string. Raises InputError for others.
    """
    tools = _parsed(tools, "'tools'")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise InputError("has 'tools' that are no list of functions as OpenAI describes them")
    return [_served_tool(tool) for tool in tools]


def served_tool_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of an assistant message, their arguments as objects; [] where it has none.

    Reads `tool_calls`, and `function_call` of OpenAI's older form. Raises InputError for malformed ones.
    """
    calls = _parsed(message.get("tool_calls"), "'tool_calls'")
    if not calls and message.get("function_call"):
        calls = [message["function_call"]]
    if not calls:
        return []
    if not isinstance(calls, list):
        raise InputError("has 'tool_calls' that are no list")
    return [_served_call(call) for call in calls]


def without_wrapper(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the functions alone, as some templates want them."""
    return [tool["function"] for tool in tools]


def _served_tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError("has 'tools' that are no list of functions as OpenAI describes them, each with a 'name'")
    kept = {key: value for key, value in function.items() if key in FUNCTION_KEYS and not _is_unset(key, value)}
    shown = kept | {key: None for key in ALWAYS if key not in kept}
    wrapper = tool if function is not tool else {}
    return {
        "type": str(wrapper.get("type", "function")),
        "function": shown,
        "defer_loading": wrapper.get("defer_loading"),
    }


def _is_unset(key: str, value: Any) -> bool:
    return value is None and key not in ALWAYS


def _served_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InputError("has a tool call without the name of a function")
    name = function["name"]
    arguments = _parsed(function.get("arguments"), f"the arguments of its call of {name!r}")
    if not isinstance(arguments, dict | None):
        raise InputError(f"has arguments for its call of {name!r} that are no JSON object")
    wrapper = call if function is not call else {}
    return {
        "id": wrapper.get("id"),
        "index": wrapper.get("index"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _parsed(value: Any, what: str) -> Any:
    """Return what a JSON string says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise InputError(f"has {what} as a text that is no JSON") from None
