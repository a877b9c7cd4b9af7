from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from byte_models import overfit_head, save_random_head, save_target
from servers import peagle, serve
from transformers import AutoTokenizer

from tools.server import ask_all

TRAINED = [[i * 7 % 250 + j for j in range(3 + i)] for i in range(4)]  # prompts the over-fitted head knows
LENGTH = 61
PHRASE_PROMPT = [200, 201, 202]
PHRASE = "the quick brown fox jumps over a dog"  # what a grammar forces, and the over-fitted head knows


def mixed_prompts() -> list[list[int]]:
    """One token, short, long, and with a shared prefix (radix cache hits)."""
    shared = [(11 * i) % 250 for i in range(40)]
    return [[5], [1, 2, 3], shared, [*shared, 9], [*shared, 9, 10, 11], [(3 * i) % 240 for i in range(150)], *TRAINED]


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """target/, random/ (an untrained head), overfit/ (a head that knows TRAINED by heart)."""
    root = tmp_path_factory.mktemp("models")
    save_target(root / "target")
    save_random_head(root / "random")
    tokenizer = AutoTokenizer.from_pretrained(root / "target")
    phrase = (PHRASE_PROMPT, [*tokenizer.encode(PHRASE), tokenizer.eos_token_id])
    overfit_head(
        root / "overfit",
        root / "target",
        TRAINED,
        LENGTH + 8,
        forced=(phrase,),
        steps=200,  # the last step drafts past the end
    )
    return root


@dataclass(frozen=True)
class Plain:
    """What the same server answers without speculation, asked one at a time: mixed_prompts(), and FEATURES by name."""

    outputs: dict[tuple[int, ...], list[int]]
    answers: dict[str, dict]


@pytest.fixture(scope="session")
def plain(models, tmp_path_factory) -> Plain:
    # Without overlap SGLang's penalties count every token of the output; with it the last one comes a step late.
    log = tmp_path_factory.mktemp("none") / "log"
    with serve(models / "target", log, "--disable-overlap-schedule") as server:
        answers = ask_all(server, mixed_prompts(), LENGTH, 1)
        outputs = {tuple(p): a["output_ids"] for p, a in zip(mixed_prompts(), answers, strict=True)}
        requests = feature_requests(outputs[tuple(TRAINED[0])])
        return Plain(outputs, {name: server.post("/generate", body) for name, body in requests.items()})


@pytest.fixture(scope="session")
def expected(plain) -> dict[tuple[int, ...], list[int]]:
    return plain.outputs


def feature_requests(known: list[int]) -> dict[str, dict]:
    """Greedy requests that use what SGLang offers. known: the unconstrained continuation of the same prompt."""

    def request(more: dict | None = None, **sampling) -> dict:
        params = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True, **sampling}
        return {"input_ids": TRAINED[0], "sampling_params": params, **(more or {})}

    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    tag = {"type": "tag", "begin": "<a>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</a>"}
    return {
        "logprobs": request({"return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0}),
        "one stop token": request(stop_token_ids=[known[7]]),
        "two stop tokens": request(stop_token_ids=[known[13], known[12]]),
        "stop string": request(stop=[chr(c) for c in range(33, 127) if c in known[5:]][:3]),
        "regex": request(regex="[a-f]{5}-[0-9]{10,20}", ignore_eos=False),
        "a phrase": request({"input_ids": PHRASE_PROMPT}, regex=PHRASE, ignore_eos=False),
        "json schema": request(json_schema=json.dumps(schema), ignore_eos=False),
        "ebnf": request(ebnf='root ::= "x" [0-9]* "!"', ignore_eos=False),
        "structural tag": request(structural_tag=json.dumps({"type": "structural_tag", "format": tag})),
        "logit bias": request(logit_bias={"65": 12.0}),
        "frequency penalty": request(frequency_penalty=2.0),
        "presence penalty": request(presence_penalty=1.5),
        "repetition penalty": request(repetition_penalty=1.7),
        "min new tokens": request(min_new_tokens=20, stop_token_ids=[known[3]], ignore_eos=False),
        "no more than 1": request(max_new_tokens=1),
    }


@pytest.fixture(scope="session")
def overfit_server(models, tmp_path_factory):
    """PEAGLE with the over-fitted head, K = 5 from its config, every pass recorded under `records`."""
    root = tmp_path_factory.mktemp("overfit")
    arguments = [*peagle(models / "overfit"), "--enable-metrics"]
    with serve(models / "target", root / "log", *arguments, PEAGLE_RECORD_DIR=str(root / "records")) as server:
        server.records = root / "records"
        yield server
