"""Sampled output follows the target's distribution, through the real server (chi-square over the first three tokens).

The first token comes from prefill, the others from verification: accepted drafts, residuals and bonus tokens.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from chisquare import p_value
from prompts import TRAINED
from servers import beyond, peagle, serve
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.drafter import PEagleDrafter

pytestmark = pytest.mark.slow

SAMPLES, TOKENS = 1200, 3
# Flat enough that several continuations are likely, one filter at a time: SGLang's first token and its verification
# disagree on how top-k and top-p combine, with or without PEAGLE.
SETTINGS = {
    "temperature and top-k": {"temperature": 1.0, "top_k": 4},
    "top-p": {"temperature": 0.4, "top_p": 0.5},
    "min-p": {"temperature": 0.7, "min_p": 0.5},
    "logit bias": {"temperature": 1.0, "top_k": 4, "logit_bias": {"7": 6.0, "9": 5.0}},
}


def step_distribution(logits: torch.Tensor, sampling: dict) -> torch.Tensor:
    """What one token is drawn from. logits: [V] of the target -> float64[V]."""
    logits = logits.double()
    for token, bias in sampling.get("logit_bias", {}).items():
        logits[int(token)] += bias
    p = (logits / sampling["temperature"]).softmax(-1)
    ordered, index = p.sort(descending=True)
    keep = torch.arange(len(p)) < sampling.get("top_k", len(p))
    keep &= ordered.cumsum(0) - ordered < sampling.get("top_p", 1.0)
    keep &= ordered >= ordered[0] * sampling.get("min_p", 0.0)
    p = torch.zeros_like(p).scatter_(0, index[keep], ordered[keep])
    return p / p.sum()


@torch.no_grad()
def continuations(target, prompt: list[int], sampling: dict, length: int) -> dict[tuple[int, ...], float]:
    """Probability of every continuation that is likely enough to be counted; the rest is left out."""
    likely = {(): 1.0}
    for _ in range(length):
        longer = {}
        for tokens, p in likely.items():
            logits = target(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            for token, q in enumerate(step_distribution(logits, sampling).tolist()):
                if p * q * SAMPLES >= 5:
                    longer[*tokens, token] = p * q
        likely = longer
    return likely


def check_distribution(server, target, sampling: dict) -> None:
    prompt = TRAINED[1]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.generate(prompt, TOKENS, **sampling), range(SAMPLES)))
    counts = Counter(tuple(answer["output_ids"]) for answer in answers)
    likely = continuations(target, prompt, sampling, TOKENS)
    assert len(likely) >= 4
    observed = torch.tensor([float(counts[tokens]) for tokens in likely])
    expected = torch.tensor(list(likely.values()), dtype=torch.float64)
    rest = 1 - expected.sum()
    if rest > 1e-9:
        observed = torch.cat([observed, SAMPLES - observed.sum()[None]])
        expected = torch.cat([expected, rest[None]])
    assert observed.sum() == SAMPLES, "a continuation that the target never gives"
    assert p_value(observed, expected) > 1e-3


@pytest.fixture(scope="module")
def target(models) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(models / "target").eval()


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_drafts(overfit_server, target, setting):
    """The default: drafts are argmaxes, accepted with the target's own probability of them."""
    check_distribution(overfit_server, target, SETTINGS[setting])


def with_correction(head: Path, to: Path) -> Path:
    """The head with a random correction, which often makes drafts wrong that were right."""
    plain = load_drafter(head)
    torch.manual_seed(4)
    drafter = PEagleDrafter(plain.config.replace(correction_rank=4))
    drafter.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.normal_(drafter.correction.lm_head.weight, std=16.0)
    save_drafter(drafter, to, torch.float32)
    return to


@pytest.mark.parametrize("corrected", beyond([False, True], True))
def test_sampled_drafts(models, target, expected, tmp_path, corrected):
    """Rejection sampling with the drafter's distribution; greedy requests in the same batch stay greedy."""
    head = with_correction(models / "overfit", tmp_path / "head") if corrected else models / "overfit"
    arguments = [*peagle(head, 3), "--speculative-use-rejection-sampling"]
    with serve(models / "target", tmp_path / "log", *arguments) as server:
        for sampling in SETTINGS.values():
            check_distribution(server, target, sampling)

        def ask(i: int) -> list[int]:
            return server.generate(TRAINED[0], 20, temperature=1.0 if i % 2 else 0)["output_ids"]

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(12)))
        assert all(a == expected[tuple(TRAINED[0])][:20] for a in answers[::2])
        accepted = server.generate(TRAINED[0], 20)["meta_info"]["spec_accept_length"]
        assert 1 < accepted < 3.5 if corrected else accepted > 2
