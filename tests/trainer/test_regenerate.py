"""What is asked, and what the answers become: records in the order of the data that `train` and `prepare` take."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time

import datasets
import pytest
from answer_server import MODEL, Reply, answer, speaking
from tiny_run import CHAT_TEMPLATE, make_tokenizer

from trainer.__main__ import main
from trainer.chat.reasoning import answer_form
from trainer.chat.template import ChatOptions, ChatTemplate
from trainer.data.documents import read_documents
from trainer.data.record_tokens import RecordTokens
from trainer.data.sources import read
from trainer.regenerate import questions


def say(role, content, **more):
    return {"role": role, "content": content, **more}


ASK, NO, MORE, SYSTEM = (say(*m) for m in (("user", "a?"), ("assistant", "no"), ("user", "b?"), ("system", "s")))


@pytest.fixture
def regenerate(target_dir, tmp_path):
    """(records or a source, overrides) -> (exit code, answers read back or None)."""
    names = itertools.count()

    def run(data, *overrides, url, to=None, target=target_dir):
        if isinstance(data, list):
            data, records = tmp_path / "data.jsonl", data
            data.write_text("".join(json.dumps(record) + "\n" for record in records))
        to = to or tmp_path / f"answers{next(names)}.jsonl"
        options = [f"target={target}", f"data.train={data}", "device=cpu", f"regenerate.url={url}"]
        code = main(["regenerate", *options, *overrides, "--to", str(to)])
        return code, [json.loads(line) for line in to.read_text().splitlines()] if to.exists() else None

    return run


@pytest.mark.parametrize(
    ("record", "asked", "kept"),
    [
        ({"messages": [ASK, NO]}, [[ASK]], "q A"),
        ({"messages": [ASK]}, [[ASK]], "q A"),
        ({"messages": [SYSTEM, ASK, NO, MORE, NO]}, [[SYSTEM, ASK], [MORE]], "s q A q A"),
        ({"messages": [ASK, NO, NO, MORE]}, [[ASK], [MORE]], "q A q A"),
        ({"messages": [SYSTEM, NO, ASK]}, [[SYSTEM, ASK]], "s q A"),
        ({"messages": [ASK, NO, say("tool", "t"), NO]}, [[ASK], [say("tool", "t")]], "q A t A"),
        ({"messages": [ASK, MORE, NO]}, [[ASK, MORE]], "q q A"),
        ({"messages": [SYSTEM, NO]}, [], "s"),
        ({"messages": []}, [], ""),
        ({"conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "a?"}]}, [[ASK]], "q A"),
        ({"conversations": []}, [], ""),
    ],
)
def test_a_conversation_is_asked_turn_by_turn(regenerate, tokenizer, tmp_path, record, asked, kept):
    with speaking() as speaker:
        code, rows = regenerate(
            [record, {"messages": [say("user", "z?")]}], "regenerate.concurrency=1", url=speaker.url
        )
    assert code == 0
    so_far = []
    for turn, request in zip(asked, speaker.requests[:-1], strict=True):
        so_far += turn
        assert request.said == so_far  # with what the target itself said before
        so_far.append(answer(request).content["choices"][0]["message"])
    messages = rows[0]["messages"]
    assert " ".join({"user": "q", "assistant": "A"}.get(m["role"], m["role"][0]) for m in messages) == kept
    answers = [m for m in messages if m["role"] == "assistant"]
    assert answers == [m | {"finish_reason": "stop"} for m in so_far if m["role"] == "assistant"]
    assert rows[0]["completion_tokens"] == 5 * len(asked)
    documents, _ = read_documents([str(tmp_path / "answers0.jsonl")], tokenizer, len(tokenizer), 512)
    assert len(documents) == 1 + bool(asked)


def test_a_prompt_is_continued_as_the_raw_text_it_is(regenerate, tokenizer, tmp_path):
    records = [{"prompt": "def f(x):", "response": "pass"}, {"prompt": "hello"}]
    with speaking() as speaker:
        code, rows = regenerate(records, url=speaker.url)
    assert code == 0
    assert {(r.path, r.said) for r in speaker.requests} == {("/v1/completions", r["prompt"]) for r in records}
    assert [row["prompt"] for row in rows] == ["def f(x):", "hello"]
    assert all(row["response"].startswith("The answer is ") and row["finish_reason"] == "stop" for row in rows)
    documents, _ = read_documents([str(tmp_path / "answers0.jsonl")], tokenizer, len(tokenizer), 512)
    assert tokenizer.decode(documents[1].input_ids[documents[1].loss_mask]) == rows[1]["response"] + "<|end|>"


def test_records_say_where_they_come_from(regenerate, tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"messages": [{"role": "user", "content": "a?"}], "id": "x1"}\n')
    datasets.Dataset.from_dict({"prompt": ["p", "q"], "id": [7, 8]}).save_to_disk(tmp_path / "set")
    with speaking() as speaker:
        data = f"[{tmp_path}/./a.jsonl,{tmp_path}/./set,hf:{tmp_path}/set]"
        code, rows = regenerate(data, url=speaker.url)
    assert code == 0
    assert [(row["source"], row["id"]) for row in rows] == [
        ("a.jsonl:2", "x1"), ("set, row 0", 7), ("set, row 1", 8),
        (f"hf:{tmp_path}/set, row 0", 7), (f"hf:{tmp_path}/set, row 1", 8),
    ]  # fmt: skip


def test_the_order_is_that_of_the_data_and_no_more_is_asked_or_read_than_agreed(regenerate, tmp_path, monkeypatch):
    records = [{"messages": [say("user", f"{i}?")]} for i in range(60)]
    chance, being_read, ahead, all_seven = random.Random(3), [], [], threading.Barrier(7, timeout=60)
    journal = tmp_path / "answers1.jsonl.partial" / "journal"

    def counting(part):
        for record in read(part):
            being_read.append(record)
            yield record

    def slow(request):
        if request.number < 60 + 7:
            all_seven.wait()
        ahead.append(len(being_read) - journal.read_bytes().count(b"\n"))
        return Reply(answer(request).content, delay=0.02 * chance.random())

    def now_it_begins(request):
        being_read.clear()  # the data is read once before anything is asked
        return answer(request)

    with speaking() as speaker:
        code, one_by_one = regenerate(records, "regenerate.concurrency=1", url=speaker.url)
        assert (code, speaker.most) == (0, 1)
        monkeypatch.setattr(questions, "read", counting)
        speaker.reply, speaker.trial = slow, now_it_begins
        code, many_at_once = regenerate(records, "regenerate.concurrency=7", url=speaker.url)
    assert (code, speaker.most) == (0, 7)
    assert many_at_once == one_by_one
    assert [row["source"] for row in one_by_one] == [f"data.jsonl:{i + 1}" for i in range(60)]
    assert len(being_read) == 60
    assert max(ahead) <= 7


def test_sampling_is_asked_as_configured_and_recorded(regenerate, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    records = [{"messages": [say("user", f"{i}?")]} for i in range(3)]
    sampling = ["regenerate.temperature=0.5", "regenerate.top_p=0.9", "regenerate.seed=40", "regenerate.max_tokens=77"]
    with speaking() as speaker:
        code, _ = regenerate(records, url=speaker.url)
        assert code == 0
        assert speaker.requests[0].body.keys() == {"messages", "model", "max_tokens"}  # the server's own defaults
        del speaker.requests[:]
        code, _ = regenerate(records, *sampling, "regenerate.extra_body={top_k: 20}", url=speaker.url)
    assert code == 0
    for request in speaker.requests:
        expected = {"model": MODEL, "max_tokens": 77, "temperature": 0.5, "top_p": 0.9, "top_k": 20}
        seed = 40 + int(request.said[0]["content"][0])
        assert request.body == {"messages": request.said, **expected, "seed": seed}
        assert request.headers["Authorization"] == "Bearer sk-secret"
    about = json.loads((tmp_path / "answers1.regenerate.json").read_text())
    assert about["settings"]["regenerate.temperature"] == 0.5
    assert about["settings"]["regenerate.extra_body"] == {"top_k": 20}
    assert about["settings"]["regenerate.model"] == MODEL
    assert (about["records"], about["answers"], about["completion_tokens"]) == (3, 3, 15)
    assert "sk-secret" not in json.dumps(about)


def test_an_answer_that_was_cut_is_supervised_without_an_end(regenerate, tokenizer, tmp_path):
    records = [{"messages": [ASK, NO, MORE, NO]}, {"prompt": "def"}]
    with speaking(lambda r: answer(r, "the answer is\N{REPLACEMENT CHARACTER}", "length")) as speaker:
        code, rows = regenerate(records, url=speaker.url)
    assert code == 0
    assert rows[0]["messages"][1] == say("assistant", "the answer is", finish_reason="length")
    assert rows[1]["response"] == "the answer is"
    documents, _ = read_documents([str(tmp_path / "answers0.jsonl")], tokenizer, len(tokenizer), 512)
    generated = [tokenizer.decode(d.input_ids[d.loss_mask]) for d in documents]
    assert generated == ["the answer is" * 2, "the answer is"]
    assert "<|end|>" in tokenizer.decode(documents[0].input_ids)
    about = json.loads((tmp_path / "answers0.regenerate.json").read_text())
    assert about["finish_reasons"] == {"length": 3}


def test_of_an_answer_cut_in_its_reasoning_the_reasoning_is_supervised():
    tokenizer = make_tokenizer(chat_template=REASONING_TEMPLATE % {"key": "thinking"})
    message = say("assistant", "", thinking="so the ", finish_reason="length")
    ((ids, mask),) = RecordTokens(tokenizer, ChatOptions()).read({"messages": [ASK, message]}).documents
    assert tokenizer.decode([token for token, on in zip(ids, mask, strict=True) if on]) == "<think>so the"
    hidden = RecordTokens(make_tokenizer(chat_template=CHAT_TEMPLATE), ChatOptions()).read({"messages": [ASK, message]})
    assert not any(hidden.documents[0][1])
    assert hidden.reasoning_lost == 1


REASONING_TEMPLATE = (
    "{%% for m in messages %%}<|{{ m.role }}|>"
    "{%% if m.%(key)s and loop.last %%}<think>{{ m.%(key)s }}</think>{%% endif %%}"
    "{{ m.content }}{%% if m.role == 'assistant' %%}<|end|>{%% endif %%}\n"
    "{%% endfor %%}{%% if add_generation_prompt %%}<|assistant|>{%% endif %%}"
)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("sent_as", ["reasoning_content", "reasoning"])
def test_reasoning_goes_where_the_template_reads_it(regenerate, tmp_path, key, sent_as):
    tokenizer = make_tokenizer(chat_template=REASONING_TEMPLATE % {"key": key})
    assert answer_form(ChatTemplate(tokenizer)).key == key
    tokenizer.save_pretrained(tmp_path / "target")
    with speaking(lambda r: answer(r, "yes", **{sent_as: "it follows"})) as speaker:
        code, rows = regenerate([{"messages": [ASK, NO, MORE]}], url=speaker.url, target=tmp_path / "target")
    assert code == 0
    assert rows[0]["messages"][1] == say("assistant", "yes", **{key: "it follows"}, finish_reason="stop")
    assert speaker.requests[1].said[1] == say("assistant", "yes", reasoning_content="it follows")
    documents, _ = read_documents([str(tmp_path / "answers0.jsonl")], tokenizer, len(tokenizer), 512)
    generated = [tokenizer.decode(d.input_ids[d.loss_mask]) for d in documents]
    assert generated == ["<think>it follows</think>yes<|end|>"] * 2


def test_reasoning_that_no_template_shows_is_refused(regenerate, capsys):
    with speaking(lambda r: answer(r, "yes", reasoning_content="it follows")) as speaker:
        code, rows = regenerate([{"messages": [ASK]}], url=speaker.url)
    assert (code, rows) == (1, None)
    assert "start the server without --reasoning-parser" in capsys.readouterr().err


def test_reasoning_that_the_template_cuts_off_is_refused(regenerate, tmp_path, capsys):
    drops = CHAT_TEMPLATE.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    make_tokenizer(chat_template=drops).save_pretrained(tmp_path / "target")
    with speaking(lambda r: answer(r, "<think>it follows</think>yes")) as speaker:
        code, rows = regenerate([{"messages": [ASK]}], url=speaker.url, target=tmp_path / "target")
        assert (code, rows) == (1, None)
        assert "an answer has its reasoning in its text (up to </think>), where" in capsys.readouterr().err
        code, rows = regenerate([{"messages": [ASK]}], url=speaker.url)
    assert (code, rows[0]["messages"][1]["content"]) == (0, "<think>it follows</think>yes")


def test_a_conversation_that_the_server_refuses_is_kept_without_that_answer(regenerate, tokenizer, tmp_path, capsys):
    def strict(request):
        if len(json.dumps(request.said)) > 150:
            return Reply({"error": {"message": "too long,\nsorry"}}, 400)
        return answer(request)

    long = say("user", "why? " * 40)
    records = [{"messages": [long, NO]}, {"messages": [ASK, NO, long, NO, MORE, NO]}, {"prompt": long["content"]}]
    with speaking(strict) as speaker:
        code, rows = regenerate([*records, {"prompt": "hello"}], url=speaker.url)
        assert code == 0
        assert [row.get("error") for row in rows] == ["HTTP 400 (too long, sorry)"] * 3 + [None]
        assert [len(row["messages"]) for row in rows[:2]] == [1, 3]
        assert "refused, for instance: data.jsonl:1: HTTP 400" in capsys.readouterr().out
        documents, _ = read_documents([str(tmp_path / "answers0.jsonl")], tokenizer, len(tokenizer), 512)
        assert len(documents) == 2
        code, rows = regenerate(records[:1], url=speaker.url)
    assert (code, rows) == (1, None)
    assert "refused every record, for instance data.jsonl:1: HTTP 400 (too long, sorry)" in capsys.readouterr().err
    assert not list(tmp_path.glob("answers1*"))


def test_a_server_of_another_name_is_mentioned(regenerate, capsys):
    with speaking() as speaker:
        assert regenerate([{"prompt": "a"}], url=speaker.url + "/")[0] == 0
    assert f"model {MODEL}, context 4096 tokens\nnote: the target is called" in capsys.readouterr().out


def test_speed_is_shown(regenerate, capsys):
    with speaking(lambda r: (time.sleep(1.2), answer(r))[1]) as speaker:
        assert regenerate([{"prompt": "a"}], url=speaker.url)[0] == 0
    assert " tokens/s" in capsys.readouterr().err


TIDE = {"type": "function", "function": {"name": "tide", "description": "High water."}}


def test_tools_and_variables_of_the_template_reach_the_server(regenerate, tokenizer, tmp_path):
    """A5, A8: what train gives the template, the server gives it, too."""
    with speaking() as speaker:
        kwargs = "data.chat_template_kwargs={enable_thinking: false}"
        code, rows = regenerate([{"messages": [ASK], "tools": [TIDE]}], kwargs, url=speaker.url)
    assert code == 0
    body = speaker.requests[0].body
    assert (body["tools"], body["chat_template_kwargs"]) == ([TIDE], {"enable_thinking": False})
    assert rows[0]["tools"] == [TIDE]


def test_a_call_of_the_target_ends_the_talk_and_is_written(regenerate):
    call = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": '{"port": "Hull"}'}}
    with speaking(lambda r: answer(r, "", "tool_calls", tool_calls=[call])) as speaker:
        code, rows = regenerate([{"messages": [ASK, NO, MORE, NO], "tools": [TIDE]}], url=speaker.url)
    assert code == 0
    assert rows[0]["messages"] == [ASK, say("assistant", "", tool_calls=[call], finish_reason="tool_calls")]


def test_bad_records_can_be_skipped(regenerate, capsys):
    records = [{"messages": [ASK]}, {"text": "once"}, {"conversations": [{"from": "bing", "value": "x"}]}]
    with speaking() as speaker:
        code, rows = regenerate(records, "data.on_bad_record=skip", url=speaker.url)
    assert (code, len(rows)) == (0, 1)
    assert "1 records skipped: is plain text" in capsys.readouterr().out
