"""The real SGLang server as the one that answers: killed or not, the same bytes; and a drafter learns from them."""

from __future__ import annotations

import json
import random
from functools import partial

import pytest
from byte_models import save_target
from killed_runs import kill_at, start
from tiny_run import CHAT_TEMPLATE, run_options
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import prefork
from tools.server import cpu_environment, serve
from trainer.__main__ import main

TALKS, KILLS = 32, 5
SERVER = ("--dtype", "float32", "--max-total-tokens", "4096", "--log-level", "warning", "--sleep-on-idle")


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "target"
    save_target(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.mask_token, tokenizer.chat_template = "<|mask|>", CHAT_TEMPLATE.replace("<|end|>", "<|eos|>")
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(target):
    """Conversations of one to three turns, ShareGPT's too, and prompts."""
    chance, path = random.Random(11), target.parent / "data.jsonl"
    with path.open("w") as file:
        for i in range(TALKS):
            turns = [f"what is {chance.randrange(1000)}?" for _ in range(1 + i % 3)]
            if i % 8 == 7:
                record = {"prompt": f"def f{i}(x):", "response": " pass"}
            elif i % 2:
                record = {"conversations": [{"from": who, "value": turn} for turn in turns for who in ("human", "gpt")]}
            else:
                record = {"messages": [{"role": who, "content": t} for t in turns for who in ("user", "assistant")]}
            file.write(json.dumps(record) + "\n")
    return path


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes_and_a_drafter_learns_from_them(target, data, tmp_path):
    straight, killed = tmp_path / "straight.jsonl", tmp_path / "killed.jsonl"
    with serve(target, tmp_path / "log", *SERVER, environment=cpu_environment(), start=prefork.start) as server:
        url = str(server.http.base_url).rstrip("/") + "/v1"
        options = [
            f"target={target}", f"data.train={data}", "device=cpu", f"regenerate.url={url}",
            "regenerate.temperature=0", "regenerate.max_tokens=16",
        ]  # fmt: skip
        assert main(["regenerate", *options, "regenerate.concurrency=4", "--to", str(straight)]) == 0
        kill_at_random(["regenerate", *options, "regenerate.concurrency=3", "--to", str(killed)], killed)
        assert main(["regenerate", *options, "regenerate.concurrency=5", "--to", str(killed)]) == 0
    assert killed.read_bytes() == straight.read_bytes()
    rows = [json.loads(line) for line in straight.read_text().splitlines()]
    assert [row["source"] for row in rows] == [f"data.jsonl:{i + 1}" for i in range(TALKS)]
    assert all(row["completion_tokens"] for row in rows)
    about = json.loads((tmp_path / "straight.regenerate.json").read_text())
    assert about["settings"]["regenerate.model"] == str(target)
    assert about["server"]["owned_by"] == "sglang"
    assert_the_answers_are_the_targets(rows, about)
    run = run_options(target, straight, tmp_path / "run")
    assert main(["prepare", *run, "data.workers=1"]) == 0
    assert main(["train", *run, f"data.train={tmp_path / 'run' / 'data'}"]) == 0
    assert (tmp_path / "run" / "head" / "config.json").is_file()


def answered(journal):
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def kill_at_random(command, answers):
    """Start the command KILLS times, each time in a process that is killed at a random point of its work."""
    chance = random.Random(13)
    journal = answers.with_name(answers.name + ".partial") / "journal"
    for wanted in sorted(chance.sample(range(1, TALKS - 9), KILLS)):
        process = start(main, command)
        assert kill_at(process, partial(answered, journal), wanted, 0.1 * chance.random())
        assert not answers.exists()


def assert_the_answers_are_the_targets(rows, about):
    """Greedy continuations by transformers of what the trainer's own template renders are what the server said."""
    tokenizer = AutoTokenizer.from_pretrained(about["settings"]["target"])
    model = AutoModelForCausalLM.from_pretrained(about["settings"]["target"])
    for row in rows[:2] + rows[7:8]:
        prompt, end = row.get("prompt"), row
        if prompt is None:
            *said, end = row["messages"]
            prompt = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        expected = tokenizer.decode(output, skip_special_tokens=True)
        if end["finish_reason"] == "length":
            expected = expected.rstrip("\N{REPLACEMENT CHARACTER}")
        assert end.get("content", end.get("response")) == expected
