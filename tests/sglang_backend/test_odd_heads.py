"""One server with a head that is odd in all that may be odd: its context, its vocabulary, its rope; at K = 63.

Beside it, what SGLang counts of a request when a step takes more tokens than the request may have.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from byte_models import CONTEXT, VOCAB, save_random_head, save_target
from prompts import TRAINED, mixed_prompts
from reference import check_drafts
from servers import peagle, serve
from torch import nn
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from sglang_backend.corrections import reasoning_tokens

K, KNOWN_IDS, MASK = 63, 192, 191
ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64,
    "attention_factor": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def odd_server(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    save_target(root / "target")
    save_random_head(
        root / "head", vocab_size=KNOWN_IDS, mask_token_id=MASK, max_position_embeddings=128, rope_parameters=ROPE
    )
    overrides = ["--json-model-override-args", '{"num_key_value_heads": 2}']  # the target's own, so nothing changes
    arguments = [*peagle(root / "head", K), *overrides]
    with serve(root / "target", root / "log", *arguments, PEAGLE_RECORD_DIR=str(root / "records")) as server:
        server.root = root
        yield server


@pytest.fixture(scope="module")
def target(odd_server) -> LlamaForCausalLM:
    target = LlamaForCausalLM.from_pretrained(odd_server.root / "target").eval()
    target.generation_config.eos_token_id = None
    return target


@pytest.mark.slow
def test_drafts_are_the_reference_loops(odd_server, target):
    """Past the head's 128 positions, with ids past its 192, which it reads as masks."""
    drafter = load_drafter(odd_server.root / "head")
    own = drafter.embed_tokens.weight
    drafter.embed_tokens = nn.Embedding.from_pretrained(torch.cat([own, own[MASK].expand(VOCAB - KNOWN_IDS, -1)]))
    prompts = [[7 * i % 250 for i in range(150)], *mixed_prompts()[:4], [255, 200, 193, 192]]
    compared = check_drafts(odd_server, odd_server.root / "records", target, drafter, prompts, K, 30, 3)
    assert len(compared) > 50
    assert any(len(ids) > 150 for ids in compared) and any((ids >= KNOWN_IDS).any() for ids in compared)


@pytest.mark.slow
def test_a_shorter_context_is_said_once(odd_server):
    log = (odd_server.root / "log").read_text()
    assert log.count("max_position_embeddings 128") == 1
    assert log.count("a vocabulary of 192") == 1


@pytest.mark.slow
@pytest.mark.parametrize("prompt_length", [CONTEXT - 8, 440, 3])
def test_a_request_may_fill_the_context(odd_server, target, prompt_length):
    """Prompt and answer together are the context: as without speculation, to the last token."""
    prompt = (TRAINED[0] * 200)[:prompt_length]
    answer = odd_server.http.post(
        "/v1/completions",
        json={
            "model": "any",
            "prompt": prompt,
            "max_tokens": CONTEXT - prompt_length,
            "temperature": 0,
            "ignore_eos": True,
        },
    )
    assert answer.status_code == 200, answer.text
    tokens = odd_server.generate(prompt, CONTEXT - prompt_length)["output_ids"]
    assert len(prompt) + len(tokens) == CONTEXT - 2  # SGLang's own limit, with and without speculation
    assert answer.json()["usage"]["completion_tokens"] == len(tokens)
    if prompt_length != 3:  # the reference takes its time
        own = target.generate(torch.tensor([prompt]), max_new_tokens=len(tokens), do_sample=False)
        assert tokens == own[0, len(prompt) :].tolist()
    one_more = odd_server.http.post(
        "/generate", json={"input_ids": prompt, "sampling_params": {"max_new_tokens": CONTEXT - prompt_length + 1}}
    )
    assert one_more.status_code == 400
    assert f"{prompt_length} tokens from the input" in one_more.text  # the user's own count


@pytest.mark.parametrize(
    ("counted", "answered", "tag", "right"),
    [(7, 2, 0, 2), (7, 9, 0, 7), (3, 3, 3, 3), (5, 2, 3, 0), (5, 3, 3, 3), (7, None, 0, 7)],
)
def test_reasoning_is_cut_with_the_answer(counted, answered, tag, right):
    """tag: tokens of the start tag that the model wrote itself; unfinished, it opens no reasoning."""
    request = SimpleNamespace(reasoning_tokens=counted, finished_len=answered, _think_start_match_len=tag)
    reasoning_tokens.cut(None, request, 6)
    assert request.reasoning_tokens == right
