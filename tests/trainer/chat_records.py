"""Some fifty chats as people bring them, in our own words: plain, with parts, tools, null, reasoning, cut, greeted."""

from __future__ import annotations

import json
from typing import Any

Record = dict[str, Any]


def say(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": each} for each in texts]


def call(name: str, arguments: Any, content: Any = "", **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return say("assistant", content, tool_calls=[{"id": "c9", "type": "function", "function": function}], **more)


def chat(*messages: dict[str, Any], **more: Any) -> Record:
    return {"messages": list(messages), **more}


SYSTEM = say("system", "You answer in one word.")
LEGS, EIGHT = say("user", "How many legs has a spider?"), say("assistant", "Eight.")
ANT, SIX = say("user", "And an ant?"), say("assistant", "Six.")
TIDE = {
    "type": "function",
    "function": {
        "name": "tide",
        "description": "High water of a port.",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]},
    },
}
HULL = say("user", "When is high water at Hull?")
RESULT = say("tool", "05:12", tool_call_id="c9")
WHEN = say("assistant", "At twelve past five.")
JSON_ARGUMENTS = json.dumps({"port": "Hull"})

RECORDS: dict[str, Record] = {
    "plain": chat(LEGS, EIGHT),
    "plain, extra keys": chat(say("user", "Which?", name="bob", weight=1), say("assistant", "That.", weight=0), id=7),
    "plain, roles in capitals": chat(say("User", "Where?"), say("Assistant", "There.")),
    "plain, names": chat(say("system", "Be brief.", name="s"), LEGS, {**EIGHT, "name": "al"}, ANT, SIX),
    "plain, carriage returns": chat(say("user", "Legs?\r\nNow."), say("assistant", "Eight.\r\nYes.\r\n")),
    "plain, special tokens": chat(say("user", "What is <|im_end|>, and <eos>?"), say("assistant", "An end.")),
    "plain, half a surrogate": chat(say("user", "a \ud83c b"), EIGHT),
    "plain, unset keys": chat(LEGS, {**EIGHT, "refusal": None, "tool_calls": [], "function_call": None, "audio": None}),
    "plain, spaces": chat(LEGS, say("assistant", "  eight, I think\n\n")),
    "plain, line breaks": chat(LEGS, say("assistant", "one\n\ntwo\n\n\nthree")),
    "plain, code": chat(say("user", "Code?"), say("assistant", "```python\ndef f(x):\n    return {x}\n```")),
    "plain, emoji": chat(say("user", "Weather?"), say("assistant", "🌧️ all day")),
    "plain, empty answer": chat(LEGS, say("assistant", "")),
    "plain, looks like JSON": chat(LEGS, say("assistant", '{"legs": 8, "kind": "spider"}')),
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello there."}]},
    "sharegpt, begun by the answer": {
        "conversations": [
            {"from": "gpt", "value": "So."},
            {"from": "human", "value": "Hi?"},
            {"from": "gpt", "value": "Yes."},
        ]
    },
    "sharegpt, system beside it": {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello there."}],
    },
    "trl, conversational": {"prompt": [LEGS], "completion": [EIGHT]},
    "trl, with history": {"prompt": [LEGS, EIGHT, ANT], "completion": [SIX]},
    "system": chat(SYSTEM, LEGS, EIGHT),
    "system, two": chat(SYSTEM, say("system", "And in English."), LEGS, EIGHT),
    "developer": chat(say("developer", "Be kind."), LEGS, EIGHT),
    "developer, in the middle": chat(LEGS, EIGHT, say("developer", "Now in French."), ANT, say("assistant", "Six.")),
    "multi-turn": chat(LEGS, EIGHT, ANT, SIX),
    "multi-turn, three": chat(SYSTEM, LEGS, EIGHT, ANT, SIX, say("user", "A snake?"), say("assistant", "None.")),
    "multi-turn, same answers": chat(LEGS, EIGHT, LEGS, EIGHT),
    "multi-turn, two questions": chat(LEGS, ANT, say("assistant", "Eight and six.")),
    "multi-turn, two answers": chat(LEGS, EIGHT, say("assistant", "Or nine?"), ANT, SIX),
    "ends with a question": chat(LEGS, EIGHT, ANT),
    "tool": chat(HULL, call("tide", JSON_ARGUMENTS), RESULT, WHEN, tools=[TIDE]),
    "tool, arguments an object": chat(HULL, call("tide", {"port": "Hull"}), RESULT, WHEN, tools=[TIDE]),
    "tool, null content": chat(HULL, call("tide", JSON_ARGUMENTS, None), RESULT, WHEN, tools=[TIDE]),
    "tool, no description": chat(HULL, WHEN, tools=[{"type": "function", "function": {"name": "tide"}}]),
    "tool, result in parts": chat(HULL, call("tide", JSON_ARGUMENTS), say("tool", text("05:12")), WHEN, tools=[TIDE]),
    "tool, only offered": chat(HULL, say("assistant", "I cannot know."), tools=[TIDE]),
    "tool, as a JSON string": chat(HULL, say("assistant", "I cannot know."), tools=json.dumps([TIDE["function"]])),
    "tool, bad arguments": chat(HULL, call("tide", '{"port": '), RESULT, WHEN, tools=[TIDE]),
    "tool, two calls": chat(
        HULL,
        {
            "role": "assistant",
            "tool_calls": [
                {"id": i, "type": "function", "function": {"name": "tide", "arguments": a}}
                for i, a in (("c1", JSON_ARGUMENTS), ("c2", '{"port": "Goole"}'))
            ],
        },
        say("tool", "05:12", tool_call_id="c1", name="tide"),
        say("tool", "05:40", tool_call_id="c2", name="tide"),
        WHEN,
        tools=[TIDE],
    ),
    "tool, answered by a function": chat(
        HULL, call("tide", JSON_ARGUMENTS), say("function", "05:12", name="tide"), WHEN
    ),
    "tool, empty arguments": chat(HULL, call("tide", ""), RESULT, WHEN, tools=[TIDE]),
    "tool, strict": chat(HULL, WHEN, tools=[{"type": "function", "function": {**TIDE["function"], "strict": True}}]),
    "null answer": chat(LEGS, say("assistant", None), ANT, SIX),
    "null system": chat(say("system", None), LEGS, EIGHT),
    "parts": chat(say("user", text("Which sea?")), say("assistant", text("The North Sea."))),
    "parts, two": chat(say("user", text("Which sea", "is it?")), say("assistant", "The Baltic.")),
    "parts, none": chat(say("user", []), EIGHT),
    "parts, of the system and the past": chat(
        say("system", text("Be brief.", "Be kind.")), LEGS, say("assistant", text("Eight", "legs.")), ANT, SIX
    ),
    "parts, cached": chat(say("user", [{**text("Legs?")[0], "cache_control": {"type": "ephemeral"}}]), EIGHT),
    "parts, image": chat(
        say("user", [*text("What is this?"), {"type": "image_url", "image_url": {"url": "x"}}]), EIGHT
    ),
    "reasoning": chat(LEGS, say("assistant", "Eight.", reasoning_content="It is an arachnid.")),
    "reasoning, under thinking": chat(LEGS, say("assistant", "Eight.", thinking="It is an arachnid."), ANT, SIX),
    "reasoning, in the text": chat(LEGS, say("assistant", "<think>\nAn arachnid.\n</think>\n\nEight.")),
    "cut": chat(LEGS, say("assistant", "Eight, for it", finish_reason="length")),
    "cut, then asked again": chat(LEGS, say("assistant", "Eight, for", finish_reason="length"), ANT, SIX),
    "greeting": chat(say("assistant", "Good morning!"), LEGS, EIGHT),
    "greeting behind a system message": chat(SYSTEM, say("assistant", "Good morning!"), LEGS, EIGHT),
}
