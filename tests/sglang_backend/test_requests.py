"""Requests and orders that arrive while others run, and what is answered with an error."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from prompts import LENGTH, TRAINED, mixed_prompts
from servers import settled

from tools.server import Server, ask_all

pytestmark = pytest.mark.slow
LONG = 400  # tokens: long enough that two orders arrive in the middle


def order(server, path: str, **body) -> int:
    return server.http.post(path, json=body).status_code


def decode_steps(server: Server) -> int:
    return server.counters()["decode_steps"]


def start(pool: ThreadPoolExecutor, server: Server, prompts: list[list[int]], length: int) -> list[Future[dict]]:
    """Send all prompts at once; return their answers to come as soon as some of them have made three decode steps."""
    before = decode_steps(server)
    futures = [pool.submit(server.generate, prompt, length) for prompt in prompts]
    while decode_steps(server) < before + 3:
        assert not any(future.done() for future in futures), "over before it was seen"
    return futures


@pytest.mark.parametrize("mode", ["in_place", "retract"])
def test_a_pause_changes_nothing(overfit_server, expected, mode):
    undisturbed = [answer["output_ids"] for answer in ask_all(overfit_server, TRAINED, 2 * LENGTH, 4)]
    with ThreadPoolExecutor(4) as pool:
        futures = start(pool, overfit_server, TRAINED, 2 * LENGTH)
        assert order(overfit_server, "/pause_generation", mode=mode) == 200
        steps = decode_steps(overfit_server)
        assert decode_steps(overfit_server) == steps, "nothing runs in a pause"
        assert order(overfit_server, "/continue_generation") == 200
        outputs = [future.result()["output_ids"] for future in futures]
    assert decode_steps(overfit_server) > steps, "the pause came in the middle"
    assert outputs == undisturbed
    assert [output[:LENGTH] for output in outputs] == [expected[tuple(prompt)] for prompt in TRAINED]


def test_an_abort_ends_requests_and_loses_nothing(overfit_server, expected):
    with ThreadPoolExecutor(4) as pool:
        futures = start(pool, overfit_server, TRAINED, LONG)
        assert overfit_server.http.post("/flush_cache").status_code == 400, "not while requests run"
        assert order(overfit_server, "/abort_request", abort_all=True) == 200
        reasons = [f.result()["meta_info"]["finish_reason"]["type"] for f in futures]
    assert "abort" in reasons
    answers = ask_all(settled(overfit_server), mixed_prompts(), LENGTH, 5)
    assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]


def test_several_answers_to_one_prompt(overfit_server, expected):
    params = {"max_new_tokens": LENGTH, "temperature": 0, "ignore_eos": True, "n": 3}
    answers = overfit_server.post("/generate", {"input_ids": TRAINED[2], "sampling_params": params})
    assert [a["output_ids"] for a in answers] == [expected[tuple(TRAINED[2])]] * 3


def test_logprobs_of_the_openai_endpoint(overfit_server, plain):
    body = {"model": "any", "prompt": TRAINED[0], "max_tokens": 12, "temperature": 0, "logprobs": 2}
    choice = overfit_server.post("/v1/completions", body)["choices"][0]
    theirs = plain.answers["logprobs"]["meta_info"]["output_token_logprobs"][:12]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx([p for p, *_ in theirs], abs=1e-3)


def test_images_are_refused(overfit_server):
    pixel = {"text": "a", "image_data": "data:image/png;base64,iVBORw0KGgo=", "sampling_params": {"max_new_tokens": 4}}
    answer = overfit_server.http.post("/generate", json=pixel)
    assert answer.status_code == 400 and "PEAGLE drafts text" in answer.text


def test_requests_for_no_token(overfit_server):
    assert overfit_server.generate(TRAINED[1], 0)["output_ids"] == []


def test_prometheus_has_sglangs_names(overfit_server):
    text = overfit_server.http.get("/metrics/").text
    for name in ("spec_accept_length", "spec_accept_rate", "spec_num_steps", "spec_verify_calls_total"):
        assert f"sglang:{name}{{" in text, name
