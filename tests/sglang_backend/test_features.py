"""What a request may ask of SGLang, with PEAGLE as without: logprobs, stops, grammars, biases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from prompts import TRAINED, feature_requests

pytestmark = pytest.mark.slow


@pytest.fixture
def requests(expected) -> dict[str, dict]:
    return feature_requests(expected[tuple(TRAINED[0])])


def test_answers_are_those_without_speculation(overfit_server, plain, requests):
    """Alone, then all at once in one batch."""
    alone = {name: overfit_server.post("/generate", body) for name, body in requests.items()}
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = pool.map(lambda body: overfit_server.post("/generate", body), requests.values())
        together = dict(zip(requests, answers, strict=True))
    for name, answer in plain.answers.items():
        for ours in (alone[name], together[name]):
            assert ours["output_ids"] == answer["output_ids"], name
            assert ours["text"] == answer["text"], name
            assert ours["meta_info"]["finish_reason"] == answer["meta_info"]["finish_reason"], name


def test_logprobs_are_the_targets(overfit_server, plain, requests):
    ours = overfit_server.post("/generate", requests["logprobs"])["meta_info"]
    theirs = plain.answers["logprobs"]["meta_info"]
    for key in ("input_token_logprobs", "output_token_logprobs"):
        assert [token for _, token, *_ in ours[key]] == [token for _, token, *_ in theirs[key]]
        values = [[p for p, *_ in info[key] if p is not None] for info in (ours, theirs)]
        torch.testing.assert_close(*map(torch.tensor, values), atol=1e-3, rtol=1e-3)
    for position, (a, b) in enumerate(zip(ours["output_top_logprobs"], theirs["output_top_logprobs"], strict=True)):
        assert [t for _, t, *_ in a] == [t for _, t, *_ in b], position


def test_acceptance_stands_under_a_grammar(overfit_server, requests):
    """The head knows the phrase that the grammar forces: all K drafts stand, not only the first."""
    info = overfit_server.post("/generate", requests["a phrase"])["meta_info"]
    assert info["spec_accept_length"] > 4
