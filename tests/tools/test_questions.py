"""Questions from three places: the same on every machine, none twice, and bad input told in a line."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
from answer_server import Reply, speaking
from tiny_run import make_tokenizer

from peagle_core.errors import InputError
from tools.questions import gsm8k, sampled
from tools.questions.__main__ import main, shuffled
from tools.questions.docstrings import docstring_questions

LIBRARY = '''
def widest(lines, least=0):
    """Return the width of the widest of the lines, in characters.

    Not part of the question.
    """
    return max(map(len, lines), default=least)

def _private(x):
    """Return what nobody outside this module is meant to ask for."""

def short(x):
    """Too short."""

class Tower:
    def height(self, unit):
        """Return the height of this tower in the unit that was asked for."""
'''


def test_a_documented_public_function_is_a_question(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "hidden.py").write_text(LIBRARY)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "plain.py").write_text(LIBRARY)
    found = list(docstring_questions(tmp_path))
    assert len(found) == 2
    assert "widest" in found[0] and "height" in found[1]
    assert all("Not part" not in question or "```" in question for question in found)
    assert found == list(docstring_questions(tmp_path))


def test_the_standard_library_asks_many_things():
    found = list(docstring_questions(Path(sysconfig.get_path("stdlib")) / "asyncio"))
    kinds = ("Write a Python function", "What does this Python function do", "Write a short example")
    assert len(found) > 50
    assert all(any(question.startswith(kind) for question in found) for kind in kinds)
    assert all(question.startswith(kinds) for question in found)


def test_the_order_depends_on_the_questions_and_the_seed_alone():
    questions = [f"question {i % 30}" for i in range(60)]
    assert sorted(shuffled(questions, 1)) == sorted(set(questions))
    assert shuffled(questions, 1) == shuffled(questions, 1) != shuffled(questions, 2)


def test_a_line_without_a_question_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": " How many? ", "answer": "Two."}) + "\n")
    assert list(gsm8k.gsm8k_questions(path)) == ["How many?"]
    path.write_text('{"question": "How many?"}\n{"prompt": "?"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl:2: is no JSON object with a 'question'"):
        list(gsm8k.gsm8k_questions(path))


def test_the_command_writes_chats_and_refuses_in_a_line(tmp_path, capsys):
    source, to = tmp_path / "train.jsonl", tmp_path / "out" / "maths.jsonl"
    source.write_text("".join(json.dumps({"question": f"How many are {i}?"}) + "\n" for i in range(9)))
    assert main(["gsm8k", str(source), "--most", "4", "--to", str(to)]) == 0
    lines = [json.loads(line) for line in to.read_text().splitlines()]
    assert len(lines) == 4
    assert all([m["role"] for m in line["messages"]] == ["user"] for line in lines)
    assert main(["gsm8k", str(tmp_path / "none.jsonl"), "--to", str(to)]) == 1
    assert "none.jsonl: cannot be read" in capsys.readouterr().err
    assert len(to.read_text().splitlines()) == 4  # what was there before is kept


def test_the_target_is_asked_where_the_user_would_speak():
    assert sampled.user_prefix(make_tokenizer()) == "<|user|>"
    assert sampled.user_prefix(make_tokenizer(), "be brief") == "<|system|>be brief<|user|>"
    with pytest.raises(InputError, match="does not show the user's words"):
        sampled.user_prefix(make_tokenizer(chat_template="{{ 'hello' }}"))


def test_only_whole_questions_are_kept():
    texts = [("Which of the two rivers is longer?", "stop"), ("Why is the sky", "length"), ("Hm?", "stop"),
             ("What is <|end|> in this template?", "stop"), ("How do birds know where to go?", "stop")]  # fmt: skip

    def reply(request):
        text, reason = texts[request.body["seed"] - 7]
        return Reply({"choices": [{"text": text, "finish_reason": reason}], "usage": {"completion_tokens": 5}})

    with speaking(reply) as server:
        found = sampled.sampled_questions("<|user|>", len(texts), server.url, temperature=1.0, seed=7)
        assert {request.said for request in server.requests} == {"<|user|>"}
    assert sorted(found) == ["How do birds know where to go?", "Which of the two rivers is longer?"]
