"""Parity (design section 9.4): what the server drafted is what the reference loop and the training pass compute."""

from __future__ import annotations

import json

import pytest
import torch
from byte_models import AUX_IDS
from conftest import LENGTH, mixed_prompts
from safetensors import safe_open
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.elements import Elements
from peagle_core.generate import DraftCache, draft_logits
from peagle_core.target import run_target
from peagle_core.training import Batch, forward_elements

pytestmark = pytest.mark.slow


def recorded_passes(server, after: int):
    """(rid, known, drafts [K], logits [K, V]) of every request in every pass since number `after`."""
    for path in sorted(server.records.glob("pass-*.safetensors"))[after:]:
        with safe_open(path, "pt") as file:
            rids = json.loads(file.metadata()["rids"])
            tensors = {name: file.get_tensor(name) for name in ("known", "drafts", "logits")}
        for i, rid in enumerate(rids):
            yield rid, int(tensors["known"][i]), tensors["drafts"][i], tensors["logits"][i]


@torch.no_grad()
def test_server_drafts_equal_reference_and_training(overfit_server, models):
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    drafter = load_drafter(models / "overfit")
    num_depths = drafter.config.num_depths
    seen = len(list(overfit_server.records.glob("*")))
    tokens = {}
    for prompt in mixed_prompts():  # twice: the second time out of the radix cache
        for _ in range(2):
            answer = overfit_server.generate(prompt, LENGTH)
            tokens[answer["meta_info"]["id"]] = prompt + answer["output_ids"]
    compared = 0
    for rid, known, drafts, logits in recorded_passes(overfit_server, seen):
        ids = torch.tensor(tokens[rid][:known]) if rid in tokens else None
        if ids is None or len(ids) < known:
            continue  # the last step runs past the request's limit
        _, aux = run_target(target, ids[None, :-1], AUX_IDS)
        reference = draft_logits(drafter, DraftCache(), ids[1:], aux[0], num_depths, 0)
        torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)
        assert torch.equal(drafts, reference.argmax(-1))
        if compared % 10 == 0:
            torch.testing.assert_close(logits, training_logits(drafter, target, ids, num_depths), atol=1e-4, rtol=1e-4)
        compared += 1
    assert compared > 50


def training_logits(drafter, target, ids: torch.Tensor, num_depths: int) -> torch.Tensor:
    """Logits of the chain anchored at the last slot of ids, computed as the trainer's flat pass computes them."""
    slots = len(ids) - 1
    padded = torch.cat([ids, ids.new_zeros(num_depths)])
    output, aux = run_target(target, padded[None], AUX_IDS)
    doc_ids = torch.zeros_like(padded)
    batch = Batch(padded, aux[0], output.hidden_states[-1][0], torch.ones_like(padded).bool(), doc_ids)
    depths = torch.arange(1, num_depths)
    elements = Elements(
        torch.cat([torch.arange(slots), torch.full_like(depths, slots - 1)]),
        torch.cat([torch.zeros(slots, dtype=torch.int64), depths]),
    )
    hidden = forward_elements(drafter, batch, elements)
    return drafter.logits(hidden[-num_depths:])
