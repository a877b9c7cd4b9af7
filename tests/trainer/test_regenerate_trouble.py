"""Servers that are absent, overloaded, broken or of another kind: asked again, or one sentence and nothing lost."""

from __future__ import annotations

import json

import pytest
from answer_server import MODEL, Reply, answer, speaking

from tools.server import free_port
from trainer.__main__ import main
from trainer.regenerate import openai_server

RECORDS = [{"messages": [{"role": "user", "content": f"{i}?"}]} for i in range(12)]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(openai_server, "FIRST_DELAY", 0.01)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


@pytest.fixture
def command(target_dir, data, tmp_path):
    return [
        "regenerate", f"target={target_dir}", f"data.train={data}", "device=cpu", "regenerate.concurrency=4",
        "regenerate.retries=3", "--to", str(tmp_path / "answers.jsonl"),
    ]  # fmt: skip


def one_sentence(capsys):
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


PASSING = {
    "too many requests": Reply({"error": {"message": "slow down"}}, 429),
    "told when": Reply(b"", 503, {"retry-after": "0"}),
    "internal error": Reply(b"<html>oops</html>", 500),
    "bad gateway": Reply(b"", 502),
    "broken connection": Reply(None),
    "no JSON": Reply(b"<html>"),
    "no object": Reply([1]),
    "no choices": Reply({"object": "chat.completion"}),
    "empty choices": Reply({"choices": []}),
    "null choices": Reply({"choices": None}),
    "no message": Reply({"choices": [{"finish_reason": "stop"}]}),
    "no reason": Reply({"choices": [{"message": {"content": "a"}}]}),
    "aborted": Reply({"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}),
    "no text": Reply({"choices": [{"message": {"content": [1]}, "finish_reason": "stop"}]}),
    "half a surrogate": Reply(b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}'),
}


def test_what_passes_is_asked_again_and_leaves_no_trace(command, tmp_path):
    answers = tmp_path / "answers.jsonl"
    with speaking() as speaker:
        assert main([*command, f"regenerate.url={speaker.url}"]) == 0
        undisturbed = answers.read_bytes()
        answers.unlink()
        troubles = iter(PASSING.values())
        speaker.reply = lambda r: next(troubles, None) or answer(r)
        del speaker.requests[:]
        assert main([*command, f"regenerate.url={speaker.url}", "regenerate.retries=20"]) == 0
        assert next(troubles, None) is None
        assert len(speaker.requests) == len(RECORDS) + len(PASSING)
    assert answers.read_bytes() == undisturbed


@pytest.mark.parametrize("trouble", ["internal error", "broken connection", "no choices", "told when"])
def test_what_does_not_pass_ends_the_run_which_can_be_continued(command, tmp_path, capsys, trouble):
    with speaking(lambda r: PASSING[trouble] if r.said[0]["content"] == "7?" else answer(r)) as speaker:
        trials = iter([answer])  # at the start all is well
        speaker.trial = lambda r: next(trials, lambda _: PASSING[trouble])(r)
        assert main([*command, f"regenerate.url={speaker.url}"]) == 1
        said = one_sentence(capsys)
        assert "the last of 4 attempts; run it again to continue" in said
        assert f"error: data.jsonl:8: {speaker.url}/chat/completions: " in said
        assert [r.said[0]["content"] for r in speaker.requests].count("7?") == 4
        done = len((tmp_path / "answers.jsonl.partial" / "journal").read_bytes().splitlines())
        assert done >= 4
        speaker.reply = speaker.trial = answer
        del speaker.requests[:]
        assert main([*command, f"regenerate.url={speaker.url}"]) == 0
        asked = {r.said[0]["content"] for r in speaker.requests}  # a request of the ended run may still come in
        assert len(asked) == len(RECORDS) - done
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["messages"][0] for row in rows] == [record["messages"][0] for record in RECORDS]


@pytest.mark.parametrize("trouble", ["internal error", "broken connection", "no JSON", "aborted"])
def test_one_request_that_always_fails_does_not_end_the_run(command, tmp_path, trouble):
    with speaking(lambda r: PASSING[trouble] if r.said[0]["content"] == "7?" else answer(r)) as speaker:
        assert main([*command, f"regenerate.url={speaker.url}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [number for number, row in enumerate(rows) if "error" in row] == [7]
    assert rows[7]["error"].endswith(", the last of 4 attempts")
    assert len(rows[7]["messages"]) == 1


def test_overload_is_no_fault_of_a_request(command, capsys):
    with speaking(lambda r: PASSING["too many requests"] if r.said[0]["content"] == "7?" else answer(r)) as speaker:
        assert main([*command, f"regenerate.url={speaker.url}"]) == 1
    assert "HTTP 429 (slow down), the last of 4 attempts; run it again to continue" in one_sentence(capsys)


def test_an_answer_that_takes_too_long(command, tmp_path):
    with speaking(lambda r: Reply(answer(r).content, delay=3.0 * (r.said[0]["content"] == "7?"))) as speaker:
        options = [f"regenerate.url={speaker.url}", "regenerate.timeout=1.5", "regenerate.retries=0"]
        assert main([*command, *options]) == 0
    row = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[7])
    assert row["error"] == "it took too long, the last of 1 attempts"


def models(*cards):
    return Reply({"data": list(cards)})


AT_START = [
    (
        {"models": Reply({"error": "no key"}, 401)},
        [],
        1,
        "HTTP 401 (no key); set the environment variable OPENAI",
    ),
    ({"models": Reply(b"", 403)}, [], 1, "HTTP 403; set the environment variable"),
    ({"models": Reply(b"<html>", 404)}, [], 1, "HTTP 404 (<html>); regenerate.url usually ends in /v1"),
    ({"models": Reply(b"", 302, {"location": "/"})}, [], 1, "HTTP 302"),
    ({"models": Reply(b"hello")}, [], 1, "names no model, so this is no OpenAI-compatible server"),
    ({"models": Reply([MODEL])}, [], 1, "names no model"),
    ({"models": models()}, [], 1, "names no model"),
    ({"models": Reply(None)}, [], 1, "no server answers"),
    ({"models": models({"id": "a"}, {"id": "b"})}, [], 2, "serves a, b; choose one with regenerate.model"),
    ({}, ["regenerate.model=org/other"], 2, f"serves {MODEL}, not 'org/other'"),
    ({}, ["regenerate.max_tokens=4096"], 2, "leaves no room for a question: the server's context is 4096 tokens"),
    (
        {"trial": Reply({"message": "no top_k here"}, 400)},
        [],
        1,
        "refuses even a question of one word (HTTP 400 (no",
    ),
    ({"trial": Reply({"detail": "Not Found"}, 404)}, [], 1, "/chat/completions: HTTP 404 (Not Found)"),
    ({"trial": Reply({"error": {"message": "who?"}}, 401)}, [], 1, "HTTP 401 (who?); set the environment variable"),
    ({"trial": Reply({"choices": []})}, [], 1, "/chat/completions: the answer has no choices"),
    ({"trial": Reply(b"", 503)}, [], 1, "/chat/completions: HTTP 503"),
]


@pytest.mark.parametrize(("server_is", "options", "code", "says"), AT_START)
def test_what_is_wrong_from_the_start_leaves_nothing_behind(command, tmp_path, capsys, server_is, options, code, says):
    with speaking() as speaker:
        speaker.models = server_is.get("models", speaker.models)
        if "trial" in server_is:
            speaker.trial = lambda _: server_is["trial"]
        assert main([*command, *options, f"regenerate.url={speaker.url}"]) == code
        assert not speaker.requests
    said = one_sentence(capsys)
    assert says in said
    assert f"{speaker.url}/" in said or code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_no_server_at_all(command, tmp_path, capsys):
    for url in (f"http://127.0.0.1:{free_port()}/v1", "http://no-such-host.invalid/v1"):
        assert main([*command, f"regenerate.url={url}"]) == 1
        said = one_sentence(capsys)
        assert f"{url}/models: no server answers (" in said
        assert "start one, or set regenerate.url" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_adapters_are_no_reason_to_ask_which_model(command):
    with speaking() as speaker:
        speaker.models = models({"id": "base", "parent": None}, {"id": "adapter", "parent": "base"})
        assert main([*command, f"regenerate.url={speaker.url}"]) == 0
        assert {request.body["model"] for request in speaker.requests} == {"base"}


DATA = {
    "empty": (b"", "is empty"),
    "blank": (b"\n\n", "nothing to ask"),
    "silent": (b'{"messages": [{"role": "system", "content": "s"}]}', "nothing to ask, no record has a question"),
    "broken": (b'{"prompt": "a"}\n{"prompt": \n', "data.jsonl:2: not valid JSON"),
    "a list": (b"[1]", "data.jsonl, record 0: a JSON object was expected"),
    "text": (b'{"text": "once"}', "data.jsonl:1: is plain text, which asks nothing"),
    "tokens": (b'{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1]}', "data.jsonl:1: is tokenised"),
    "keys": (b'{"question": "?"}', "data.jsonl:1: has keys ['question'], expected 'messages'"),
    "no prompt": (b'{"prompt": ""}', "'prompt' must be a string that is not empty"),
    "prompts": (b'{"prompt": ["a"]}', "'prompt' must be a string"),
    "no roles": (b'{"messages": [{"content": "a"}]}', "'messages' must be a list of objects with 'role'"),
    "speaker": (
        b'{"conversations": [{"from": "bing", "value": "a"}]}',
        "data.jsonl:1: 'conversations' has the",
    ),
    "a call": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]}',
        "data.jsonl:1: message 1 calls tools",
    ),
    "tools": (
        b'{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}',
        "data.jsonl:1: has 'tools' that are no list",
    ),
    "half a surrogate": (b'{"prompt": "\\ud800"}', "data.jsonl:1: has half of a surrogate pair"),
    "not a number": (b'{"messages": [{"role": "user", "content": NaN}]}', "data.jsonl:1: has a value that JSON"),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_data_is_refused_before_anything_is_asked(command, data, tmp_path, capsys, name):
    content, says = DATA[name]
    data.write_bytes(content)
    with speaking() as speaker:
        assert main([*command, f"regenerate.url={speaker.url}"]) == 1
        assert not speaker.requests
    assert says in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ("--to={tmp}/answers.json", 2, "must end in .jsonl"),
        ("--to={tmp}/data.jsonl", 2, "data.jsonl: exists and was not made by regenerate; choose another --to"),
        ("--to={tmp}/data.jsonl/a.jsonl", 1, "cannot be written (Not a directory)"),
        ("--to=/proc/a.jsonl", 1, "cannot be written"),
        ("data.train={tmp}/tokens", 2, "tokens is prepared, regenerate needs the text"),
        ("data.train={tmp}/story.txt", 1, "story.txt: is plain text"),
        ("target={tmp}/no-such-target", 1, "the tokenizer of"),
        ("target={tmp}/silent", 1, "the target's tokenizer has no chat template"),
    ],
)
def test_other_bad_input(command, tmp_path, capsys, target_dir, change, code, says):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "index.json").write_text("{}")
    (tmp_path / "story.txt").write_text("once")
    (tmp_path / "silent").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with speaking() as speaker:
        assert main([*command, f"regenerate.url={speaker.url}", change.format(tmp=tmp_path)]) == code
        assert not speaker.requests
    assert says in one_sentence(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("record", "hint"), [({"prompt": "What is 2 + 2?"}, True), (RECORDS[0], False)], ids=["text", "chat"]
)
def test_empty_answers_are_counted(command, data, tmp_path, capsys, record, hint):
    """A chat model that is given a bare question to continue often says nothing, and nothing is trained on."""
    data.write_text("".join(json.dumps(r) + "\n" for r in (record, {"prompt": "the secret"})))
    with speaking(lambda request: answer(request, "yes" if "secret" in str(request.said) else "")) as speaker:
        assert main([*command, f"regenerate.url={speaker.url}"]) == 0
    printed = capsys.readouterr().out
    assert "note: 1 answers are empty" in printed and ("belongs into 'messages'" in printed) == hint
    assert json.loads((tmp_path / "answers.regenerate.json").read_text())["empty"] == 1
