"""Chats become what a SGLang server would be asked, and what the target says to that: every record, every template."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from chat_records import EIGHT, HULL, JSON_ARGUMENTS, LEGS, RECORDS, RESULT, SYSTEM, TIDE, call, chat, say, text
from chat_templates import FAMILIES, KNOWN, OURS, released, supervised

from peagle_core.errors import InputError
from trainer.chat.records import chat_of
from trainer.data.record_tokens import RecordTokens

ALL = sorted(FAMILIES)
needs_released = pytest.mark.skipif(not released(), reason="../shared/cases/templates is not there")


def answers(name, record, **kwargs):
    return supervised(FAMILIES[name], record, **kwargs)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tags", "Eight.<|im_end|>"), ("opens", "Eight.<|im_end|>"), ("thinks", "Eight.<|im_end|>"),
        ("alternates", "Eight.<end_of_turn>"), ("two_ends", "Eight.<|end|>"), ("text_arguments", "Eight.<|end|>"),
        ("channels", "<|channel|>final<|message|>Eight.<|return|>"),
        *(
            pytest.param(name, says, marks=needs_released)
            for name, says in [
                ("deepseekv3", f"Eight.{KNOWN['deepseekv3'][0]}"), ("nemotron_3_nano", "Eight.<|im_end|>"),
                ("gemma3", "Eight.<end_of_turn>"), ("phi3", "Eight.<|end|>"), ("qwen3", "Eight.<|im_end|>"),
                ("qwen3_6", "Eight.<|im_end|>"), ("qwen2_5", "Eight.<|im_end|>"), ("llama3_1", "Eight.<|eot_id|>"),
                ("gptoss", "<|channel|>final<|message|>Eight.<|return|>"),
            ]
        ),
    ],
)  # fmt: skip
def test_a_plain_answer_is_its_text_and_the_end_of_its_turn(name, says):
    """A1, A7, A8: behind the prompt that is served, without a block for reasoning, up to the first end id."""
    assert answers(name, chat(LEGS, EIGHT)) == [says]


@pytest.mark.parametrize("name", ["thinks", *(["qwen3", "qwen3_6", "nemotron_3_nano"] if released() else [])])
def test_what_the_prompt_supplies_is_never_supervised(name):
    """A8: with thinking switched off the prompt has the block; reasoning in the data has no place then."""
    assert answers(name, chat(LEGS, EIGHT), enable_thinking=False) == ["Eight.<|im_end|>"]
    thought = say("assistant", "Eight.", reasoning_content="An arachnid.")
    assert answers(name, chat(LEGS, thought), enable_thinking=False) == ["Eight.<|im_end|>"]
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    found = RecordTokens(tokenizer, family.options(tokenizer, enable_thinking=False)).read(chat(LEGS, thought))
    assert found.reasoning_lost == 1
    assert "</think>" in tokenizer.decode(found.documents[0][0])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("thinks", "<think>\nAn arachnid.\n</think>\n\nEight.<|im_end|>"),
        ("opens", "An arachnid.\n</think>\nEight.<|im_end|>"),
        ("channels", "<|channel|>analysis<|message|>An arachnid.<|end|>"
                     "<|start|>assistant<|channel|>final<|message|>Eight.<|return|>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning", "part"])
def test_reasoning_is_learnt_under_whatever_key_the_record_has_it(name, says, key):
    """A9: the template reads one key, records have another; content may have it as a part."""
    answer = say("assistant", "Eight.", **{key: "An arachnid."})
    if key == "part":
        answer = say("assistant", [{"type": "thinking", "thinking": "An arachnid."}, *text("Eight.")])
    assert answers(name, chat(LEGS, answer)) == [says]


def test_reasoning_that_no_template_shows_is_counted():
    family = OURS["tags"]
    tokenizer = family.tokenizer()
    found = RecordTokens(tokenizer, family.options(tokenizer)).read(RECORDS["reasoning"])
    assert (found.reasoning_lost, found.documents[0][1].count(True)) == (1, len("Eight.") + 1)


@pytest.mark.parametrize("name", ["tags", "thinks", "two_ends", "text_arguments", "channels"])
def test_text_parts_are_joined_as_the_server_joins_them(name):
    """A2: by a blank, where the template does not read parts itself."""
    record = chat(say("user", text("Which", "sea?")), say("assistant", text("The North", "Sea.")))
    assert answers(name, record) == answers(name, chat(say("user", "Which sea?"), say("assistant", "The North Sea.")))


def test_a_template_that_reads_parts_gets_them():
    record = chat(say("user", text("Which")), say("assistant", text("The North", "Sea.")))
    assert answers("alternates", record) == ["The NorthSea.<end_of_turn>"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", None])
def test_other_parts_are_refused_with_the_message(kind):
    record = chat(SYSTEM, say("user", [*text("What is this?"), {"type": kind, "image_url": {"url": "x"}}]), EIGHT)
    with pytest.raises(InputError, match=f"message 1 has a part of type {kind!r}"):
        answers("tags", record)


def test_a_text_part_without_a_text_is_refused():
    """Assistants' messages have an object there."""
    record = chat(say("user", [{"type": "text", "text": {"value": "Legs?", "annotations": []}}]), EIGHT)
    with pytest.raises(InputError, match="message 0 has a part of type 'text' in its content whose 'text' is no text"):
        answers("tags", record)


@pytest.mark.parametrize("name", ["tags", "channels", *(["qwen2_5", "llama3_1", "qwen3"] if released() else [])])
@pytest.mark.parametrize("content", ["", None])
def test_arguments_of_a_call_are_an_object_however_the_record_has_them(name, content):
    """A3, A4: a JSON string, an object, OpenAI's older form; null content is no content."""
    expected = answers(name, chat(HULL, call("tide", {"port": "Hull"}), RESULT, EIGHT, tools=[TIDE]))
    assert '{"port": "Hull"}' in expected[0]
    record = chat(HULL, call("tide", JSON_ARGUMENTS, content), RESULT, EIGHT, tools=[TIDE])
    assert answers(name, record) == expected
    older = say("assistant", content, function_call={"name": "tide", "arguments": JSON_ARGUMENTS})
    assert answers(name, chat(HULL, older, RESULT, EIGHT, tools=[TIDE])) == expected
    assert "None" not in "".join(expected)


def test_calls_that_a_template_does_not_show_are_refused():
    with pytest.raises(InputError, match="message 1: it calls tools, which the chat template does not show"):
        answers("two_ends", chat(HULL, call("tide", JSON_ARGUMENTS)))
    with pytest.raises(InputError, match="message 1: the chat template refuses the messages"):
        answers("text_arguments", chat(HULL, call("tide", JSON_ARGUMENTS)))


@pytest.mark.parametrize("tools", [[TIDE], [TIDE["function"]], json.dumps([TIDE]), json.dumps([TIDE["function"]])])
def test_tools_reach_the_template_as_the_server_passes_them(tools):
    """A5: with the keys that SGLang's models of a request add."""
    family = OURS["tags"]
    tokenizer = family.tokenizer()
    ids, _ = RecordTokens(tokenizer, family.options(tokenizer)).read(chat(HULL, EIGHT, tools=tools)).documents[0]
    (shown,) = [line for line in tokenizer.decode(ids).splitlines() if "High water" in line]
    function = {key: TIDE["function"][key] for key in ("name", "description", "parameters")}
    assert shown == json.dumps({"type": "function", "function": function, "defer_loading": None})


def test_a_greeting_is_context_and_so_is_a_second_answer():
    """A6: what nobody asked for is never supervised, and counted."""
    for name in ("tags", "thinks", "two_ends"):
        end = FAMILIES[name].ends[-1] if name == "two_ends" else FAMILIES[name].eos
        assert answers(name, RECORDS["greeting behind a system message"]) == [f"Eight.{end}"]
        assert answers(name, RECORDS["multi-turn, two answers"]) == [f"Eight.{end}", f"Six.{end}"]
    assert chat_of(RECORDS["greeting"]).unprompted == 1
    family = OURS["tags"]
    tokenizer = family.tokenizer()
    ids, _ = RecordTokens(tokenizer, family.options(tokenizer)).read(RECORDS["greeting"]).documents[0]
    assert "Good morning!" in tokenizer.decode(ids)


def test_an_answer_of_weight_0_is_context():
    """As files for OpenAI's fine-tuning mark what is not to be learnt."""
    nine = say("assistant", "Nine.", weight=0)
    assert answers("tags", chat(LEGS, nine, LEGS, {**EIGHT, "weight": 1})) == ["Eight.<|im_end|>"]
    family = OURS["tags"]
    tokenizer = family.tokenizer()
    found = RecordTokens(tokenizer, family.options(tokenizer)).read(chat(LEGS, nine, LEGS, EIGHT))
    assert "Nine." in tokenizer.decode(found.documents[0][0]) and found.unprompted == 0


def test_of_trl_only_the_completion_is_an_answer():
    assert answers("tags", RECORDS["trl, with history"]) == ["Six.<|im_end|>"]


@pytest.mark.parametrize(("name", "end"), [("alternates", "<end_of_turn>"), ("two_ends", "<|end|>")])
@pytest.mark.parametrize("key", ["response", "completion"])
def test_a_response_ends_as_a_chat_does(name, end, key):
    """A7: with the end id that a chat writes, once, and not with the tokenizer's own."""
    assert answers(name, {"prompt": "Legs?", key: "Eight."}) == [f"Eight.{end}"]
    assert answers(name, {"prompt": "Legs?", key: f"Eight.{end}"}) == [f"Eight.{end}"]
    assert answers(name, {"prompt": "Legs?", key: "Eigh", "finish_reason": "length"}) == ["Eigh"]


@pytest.mark.parametrize("name", ALL)
def test_every_record_renders_or_is_refused_in_a_sentence(name, capsys):
    """Prompt and tokens are those of the request, and the answer is inside its turn: for every record of the corpus."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    reader = RecordTokens(tokenizer, family.options(tokenizer))
    ends = set(tokenizer.convert_tokens_to_ids(list(family.ends)))
    row, counts = "", Counter[str]()
    for title, record in RECORDS.items():
        try:
            found, chats = reader.read(record), chat_of(record)
            turns = reader.chat_turns(chats)
        except InputError as error:
            assert str(error)
            assert "\n" not in str(error)
            row += "-"
            counts["refused"] += 1
            continue
        row, counts["trained"] = row + ("t" if turns else "."), counts["trained"] + bool(turns)
        for (turn, tokens), number in zip(turns, chats.answers, strict=True):
            before = chats.messages[:number]
            assert turn.prompt == reader.turns.template.render(before, chats.tools, generation_prompt=True)
            assert tokens.prompt == tokenizer(turn.prompt, add_special_tokens=False)["input_ids"]
            supplied = turn.prompt.removeprefix(reader.turns.template.render(before, chats.tools))
            said = tokenizer.decode(tokens.answer)
            assert not said.startswith(supplied), title
            assert not ends & set(tokens.answer[:-1]), title
            assert number in chats.cut or tokens.answer[-1] in ends, title
            assert any(ids[: len(tokens.prompt)] == tokens.prompt for ids, _ in found.documents), title
    assert counts["trained"] >= 20
    with capsys.disabled():
        print(f"\n{name:>16} {row} {counts['trained']} trained, {counts['refused']} refused", end=" ")
