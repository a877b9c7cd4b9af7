"""Parity: what the server drafted is what the reference loop and the training pass compute."""

from __future__ import annotations

import pytest
import torch
from byte_models import AUX_IDS
from prompts import LENGTH, mixed_prompts
from reference import check_drafts
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.elements import Elements
from peagle_core.target import run_target
from peagle_core.training import Batch, forward_elements
from tools.bench.parity.compare import reference_logits

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_server_drafts_equal_reference_and_training(overfit_server, models):
    target = LlamaForCausalLM.from_pretrained(models / "target").eval()
    drafter = load_drafter(models / "overfit")
    k = drafter.config.num_depths
    prompts = [prompt for prompt in mixed_prompts() for _ in range(2)]  # the second time out of the radix cache
    compared = check_drafts(overfit_server, overfit_server.records, target, drafter, prompts, k, LENGTH)
    assert len(compared) > 50
    for ids in compared[::10]:
        trained = training_logits(drafter, target, ids, k)
        drafts = torch.zeros(k, dtype=torch.int64)  # which change nothing without a correction
        torch.testing.assert_close(trained, reference_logits(target, drafter, ids, drafts), atol=1e-4, rtol=1e-4)


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
