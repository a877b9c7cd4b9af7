"""What the tests ask of a server: prompts of every kind, and requests that use what SGLang offers."""

from __future__ import annotations

import json

TRAINED = [[i * 7 % 250 + j for j in range(3 + i)] for i in range(4)]  # prompts the over-fitted head knows
LENGTH = 61
PHRASE_PROMPT = [200, 201, 202]
PHRASE = "the quick brown fox jumps over a dog"  # what a grammar forces, and the over-fitted head knows


def mixed_prompts() -> list[list[int]]:
    """One token, short, long, and with a shared prefix (radix cache hits)."""
    shared = [(11 * i) % 250 for i in range(40)]
    return [[5], [1, 2, 3], shared, [*shared, 9], [*shared, 9, 10, 11], [(3 * i) % 240 for i in range(150)], *TRAINED]


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
