"""Targets of other families, tiny and random: PEAGLE's greedy output is what transformers generates."""

from __future__ import annotations

import pytest
import torch
from byte_models import AUX_IDS, save_random_head, save_tokenizer
from families import FAMILIES, random_target
from prompts import mixed_prompts
from reference import check_drafts
from servers import beyond, peagle, serve

from tools.server import ask_all

pytestmark = pytest.mark.slow

LENGTH = 24
OPTIONS = {"gpt-oss": ["--page-size", "16"]}  # its sliding layers have a KV pool of their own, paged on GPUs


@pytest.mark.parametrize("family", beyond(FAMILIES, "qwen3", "qwen3-moe"))
def test_greedy_output_is_the_targets_own(tmp_path, family):
    target = random_target(family)
    target.save_pretrained(tmp_path / "target")
    save_tokenizer(tmp_path / "target")
    drafter = save_random_head(tmp_path / "head", aux_layer_ids=AUX_IDS, num_depths=3)
    prompts = mixed_prompts()[:6]  # up to 150 tokens: far beyond the sliding window
    prompts += [[(5 * i) % 250 for i in range(length)] for length in (47, 48)]  # mask rows begin a page of their own
    expected = [
        target.generate(torch.tensor([p]), max_new_tokens=LENGTH, do_sample=False)[0, len(p) :].tolist()
        for p in prompts
    ]
    records = tmp_path / "records"
    arguments = [*peagle(tmp_path / "head"), *OPTIONS.get(family, [])]
    with serve(tmp_path / "target", tmp_path / "log", *arguments, PEAGLE_RECORD_DIR=str(records)) as server:
        for concurrency in (1, 4):
            answers = ask_all(server, prompts, LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == expected
        counters = server.counters()
        assert counters["decode_drafter_passes"] == counters["decode_steps"] > 0
        assert counters["prefills_without_masks"] == 0
        assert len(check_drafts(server, records, target, drafter, prompts, 3, 8, concurrency=4)) > 20
