"""What SGLang's scheduler does to requests never changes outputs or drafts: chunks, pages, retraction."""

from __future__ import annotations

import json

import pytest
import torch
from byte_models import CONTEXT
from prompts import LENGTH, TRAINED, mixed_prompts
from reference import check_drafts
from servers import beyond, generate_to_the_limit, peagle, plugin_path, serve, settled
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from tools.server import ask_all

pytestmark = pytest.mark.slow

OPTIONS = {
    "chunked prefill": ["--chunked-prefill-size", "32"],
    "pages of 16 and chunks": ["--page-size", "16", "--chunked-prefill-size", "48"],
    "pages of 64 without overlap": ["--page-size", "64", "--disable-overlap-schedule"],
    "no radix cache": ["--disable-radix-cache"],
}


@pytest.mark.parametrize("option", beyond(OPTIONS, "chunked prefill", "no radix cache"))
def test_outputs_and_drafts_stay(models, expected, tmp_path, option):
    """Prompts of up to 150 tokens, alone and together, then again out of the radix cache."""
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    drafter = load_drafter(models / "overfit")
    records = tmp_path / "records"
    arguments = [*peagle(models / "overfit"), *OPTIONS[option]]
    with serve(models / "target", tmp_path / "log", *arguments, PEAGLE_RECORD_DIR=str(records)) as server:
        for concurrency in (1, 5):
            compared = check_drafts(server, records, target, drafter, mixed_prompts(), 5, 40, concurrency)
            assert len(compared) > 50
        answers = ask_all(server, mixed_prompts(), LENGTH, 8)
        assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        assert server.counters()["prefills_without_masks"] == 0
        if option == "no radix cache":  # without it SGLang takes embeddings, in bf16
            answer = server.http.post("/generate", json={"input_embeds": [[0.0] * 64], "sampling_params": {}})
            assert answer.status_code == 400 and "--dtype bfloat16" in answer.text
            assert server.generate(TRAINED[0], LENGTH)["output_ids"] == expected[tuple(TRAINED[0])]


@pytest.mark.parametrize("page_size", beyond([1, 16], 1))
def test_retracted_requests_go_on_where_they_were(models, expected, tmp_path, page_size):
    """SGLang's own test switch retracts running requests every third pass; a retracted one is prefilled again."""
    arguments = [*peagle(models / "overfit"), "--page-size", str(page_size), "--max-total-tokens", "2048"]
    with serve(models / "target", tmp_path / "log", *arguments, SGLANG_TEST_RETRACT="1") as server:
        for _ in range(2):
            answers = ask_all(server, mixed_prompts(), LENGTH, 10)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
    assert "retract" in (tmp_path / "log").read_text().lower()


def test_adaptive_k_follows_the_load(models, expected, tmp_path):
    """K = 5 for a request alone, 1 or 2 for four and more at once; the output is the same throughout."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"1": {"candidate_steps": [5]}, "4": {"candidate_steps": [1, 2]}}))
    arguments = [*peagle(models / "overfit"), "--speculative-adaptive", "--speculative-adaptive-config", str(table)]
    accept_length = {}
    with serve(models / "target", tmp_path / "log", *arguments) as server:
        for concurrency in (1, 8, 1):
            answers = ask_all(server, TRAINED * 3, LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in TRAINED * 3]
            accept_length[concurrency] = min(a["meta_info"]["spec_accept_length"] for a in answers)
        answers = ask_all(server, mixed_prompts(), LENGTH, 5)
        assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
    assert accept_length[1] > 5
    assert accept_length[8] < 4


def test_k_follows_the_confidence_in_the_drafts(models, expected, tmp_path):
    """A head that knows the text has all its drafts verified, a random one hardly more than the least."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"confidence": 0.4, "1": {"candidate_steps": [1, 3, 5]}}))
    for head, least, most in (("overfit", 4, 6), ("random", 1, 2)):  # requests that end are in one more step
        arguments = [*peagle(models / head), "--speculative-adaptive", "--speculative-adaptive-config", str(table)]
        with serve(models / "target", tmp_path / head, *arguments) as server:
            steps = 0
            for concurrency in (1, 4):
                answers = ask_all(server, TRAINED * 2, LENGTH, concurrency)
                assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in TRAINED * 2]
                steps += sum(a["meta_info"]["spec_verify_ct"] for a in answers)
            assert least <= server.counters()["verified_drafts"] / steps <= most, head


@pytest.mark.parametrize("page_size", beyond([1, 16], 1))
def test_no_slot_outside_a_reservation_is_written(models, expected, tmp_path, page_size):
    """tests/sglang_backend/pool_probe.py checks every write, with chunks, a full pool and K = 7."""
    environment = {"PYTHONPATH": plugin_path(tmp_path, "pool_probe"), "POOL_PROBE": str(tmp_path / "writes")}
    options = ["--page-size", str(page_size), "--max-total-tokens", "640", "--chunked-prefill-size", "64"]
    with serve(models / "target", tmp_path / "log", *peagle(models / "overfit", 7), *options, **environment) as server:
        for concurrency in (1, 5, 10):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        # A request at the context limit: its last rows reach past it.
        target = LlamaForCausalLM.from_pretrained(models / "target").eval()
        target.generation_config.eos_token_id = None
        prompt = (TRAINED[0] * 200)[: CONTEXT - 60]
        tokens = generate_to_the_limit(server, prompt)
        assert len(prompt) + len(tokens) >= CONTEXT - 2
        own = target.generate(torch.tensor([prompt]), max_new_tokens=len(tokens), do_sample=False)
        assert tokens == own[0, len(prompt) :].tolist()
        assert settled(server).generate(prompt[:5], 3)["output_ids"]
    lines = [json.loads(line) for line in (tmp_path / "writes").read_text().splitlines()]
    assert not [line for line in lines if "violation" in line]
    assert len(lines) > 100 and max(line["rows"] for line in lines) == 14


@pytest.mark.matrix
def test_two_ranks_verify_as_many(models, expected, tmp_path):
    """K follows the confidence of the first rank on both."""
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"confidence": 0.2, "1": {"candidate_steps": [1, 3, 5]}}))
    arguments = ["--tp-size", "2", "--speculative-adaptive", "--speculative-adaptive-config", str(table)]
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    with serve(models / "target", tmp_path / "log", *peagle(models / "random"), *arguments, **cores) as server:
        answers = ask_all(server, mixed_prompts(), LENGTH, 3)
        assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]


def test_two_ranks(models, expected, tmp_path):
    """Tensor parallelism over gloo."""
    cores = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    with serve(models / "target", tmp_path / "log", *peagle(models / "overfit"), "--tp-size", "2", **cores) as server:
        for concurrency in (1, 5):
            answers = ask_all(server, mixed_prompts(), LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()]
        assert server.generate(TRAINED[0], LENGTH)["meta_info"]["spec_accept_length"] > 5
