"""The unmodified SGLang server with PEAGLE: lossless, one drafter pass per step, and it survives what users send."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from prompts import LENGTH, TRAINED, mixed_prompts
from servers import beyond, peagle, serve

from tools.server import ask_all, start_by_command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_greedy_output_is_that_of_no_speculation(overfit_server, expected, concurrency):
    answers = ask_all(overfit_server, mixed_prompts(), LENGTH, concurrency)
    for prompt, answer in zip(mixed_prompts(), answers, strict=True):
        assert answer["output_ids"] == expected[tuple(prompt)]


@pytest.mark.parametrize("num_draft_tokens", beyond([1, 3], 1))
def test_a_random_head_never_changes_the_output(models, expected, tmp_path, num_draft_tokens):
    """Started by the command that users give, while other tests fork their servers (`tools.prefork`)."""
    arguments = peagle(models / "random", num_draft_tokens)
    with serve(models / "target", tmp_path / "log", *arguments, start=start_by_command) as server:
        for concurrency in (1, 5):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        counters = server.counters()
        assert counters["decode_drafter_passes"] == counters["decode_steps"] > 0


def test_a_full_pool_evicts_prefixes_and_stays_lossless(models, expected, tmp_path):
    """600 KV slots for prompts and answers of some 1,000 tokens, twice: mask rows find their slots by eviction."""
    with serve(
        models / "target", tmp_path / "log", *peagle(models / "overfit", 5), "--max-total-tokens", "600"
    ) as server:
        for _ in range(2):
            answers = ask_all(server, mixed_prompts(), LENGTH, 10)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        assert server.counters()["prefills_without_masks"] == 0


def test_an_overfitted_head_is_accepted_almost_always(overfit_server, expected):
    before = overfit_server.counters()
    answers = ask_all(overfit_server, TRAINED, LENGTH, 1)
    after = overfit_server.counters()
    # Every step but a request's last, which the length limit cuts short, accepts all K drafts and the bonus token.
    histogram = [sum(h) for h in zip(*(a["meta_info"]["spec_correct_drafts_histogram"] for a in answers), strict=True)]
    accept_length = 1 + sum(correct * steps for correct, steps in enumerate(histogram)) / sum(histogram)
    assert accept_length >= 0.95 * 6
    passes = after["decode_drafter_passes"] - before["decode_drafter_passes"]
    assert passes == after["decode_steps"] - before["decode_steps"]


def test_acceptance_per_position_is_in_prometheus(overfit_server):
    def counted(name: str) -> dict[str, float]:
        lines = [line for line in overfit_server.http.get("/metrics").text.splitlines() if line.startswith(name)]
        return {re.search(r'position="(\d+)"|$', line)[1]: float(line.split()[-1]) for line in lines}

    names = ("peagle:accepted_drafts_total", "sglang:spec_verify_calls_total")
    overfit_server.generate([17, 3], 20)  # so that the series are there
    before = [counted(name) for name in names]
    answers = ask_all(overfit_server, [*TRAINED, [9, 9, 9]], LENGTH, 3)
    after = [counted(name) for name in names]
    histograms = [a["meta_info"]["spec_correct_drafts_histogram"] for a in answers]
    stood = {str(k): sum(sum(h[k:]) for h in histograms) for k in range(1, 6)}
    assert {k: n - before[0][k] for k, n in after[0].items()} == stood
    assert after[1][None] - before[1][None] == sum(map(sum, histograms))
    assert stood["1"] >= stood["5"] > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 30])
def test_reasoning_is_counted_in_what_is_answered(overfit_server, max_tokens):
    """The head knows the answer, so a step takes six tokens; none of them ends the thinking."""
    sampling = {"max_new_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": TRAINED[0], "sampling_params": sampling, "require_reasoning": True}
    info = overfit_server.post("/generate", body)["meta_info"]
    assert info["reasoning_tokens"] == info["completion_tokens"] == max_tokens


def test_openai_endpoint_and_streaming(overfit_server, expected):
    prompt = TRAINED[0]
    body = {"model": "any", "prompt": prompt, "max_tokens": 20, "temperature": 0}
    answer = overfit_server.http.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 20
    texts = []
    with overfit_server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                texts += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    assert "".join(texts) == answer["choices"][0]["text"]
    assert len(texts) > 1


def test_it_survives_bad_and_odd_requests(overfit_server, expected):
    http = overfit_server.http
    empty = http.post("/generate", json={"text": "", "sampling_params": {"max_new_tokens": 4}})
    assert empty.status_code == 400 and "no tokens" in empty.text
    too_long = http.post("/generate", json={"input_ids": [5] * 2000, "sampling_params": {"max_new_tokens": 4}})
    assert too_long.status_code == 400
    assert len(overfit_server.generate(TRAINED[1], 1)["output_ids"]) == 1
    body = {"input_ids": TRAINED[1], "stream": True, "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    with http.stream("POST", "/generate", json=body) as stream:
        next(stream.iter_lines())  # the client goes away in the middle of a stream
    with ThreadPoolExecutor(16) as pool:
        lengths = list(pool.map(lambda i: len(overfit_server.generate([i + 1] * (i + 1), 24)["output_ids"]), range(16)))
    assert lengths == [24] * 16
    prompt = mixed_prompts()[2]
    assert overfit_server.generate(prompt, LENGTH)["output_ids"] == expected[tuple(prompt)]


def test_sampling_requests_work_beside_greedy_ones(overfit_server, expected):
    def ask(i: int) -> list[int]:
        if i % 2:
            return overfit_server.generate(TRAINED[0], 20, temperature=1.0, top_p=0.9, top_k=20)["output_ids"]
        return overfit_server.generate(TRAINED[0], 20)["output_ids"]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert all(a == expected[tuple(TRAINED[0])][:20] for a in answers[::2])
    assert all(len(a) == 20 for a in answers)
