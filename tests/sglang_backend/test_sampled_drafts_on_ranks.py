"""Tensor parallelism with sampled drafts: every rank verifies those of the first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang")

from sglang.srt.layers.logits_processor import LogitsProcessorOutput

from sglang_backend import drafter_pass
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.drafter_pass import DrafterPass

K, VOCAB = 2, 9


@pytest.fixture
def worker() -> DrafterPass:
    worker = object.__new__(DrafterPass)
    worker.speculative_num_steps = worker.relay_width = K
    worker.distributions = DraftDistributions(4, K, VOCAB, "cpu")
    worker.certain = torch.ones(1)
    worker.samples_drafts, worker.hot_token_id, worker.recorder = True, None, None
    worker.draft_runner = SimpleNamespace(model=SimpleNamespace(correction=None, drafted_outright=lambda _: None))
    worker.target_worker = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCAB))
    return worker


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_first_ranks_draws_are_everybodys(monkeypatch, worker, ranks):
    """A rank draws with a generator of its own; one other use of it, and ranks would verify different tokens."""
    monkeypatch.setenv("SGLANG_OPT_USE_GUMBEL_SAMPLE", "0")  # torch draws, where SGLang has Triton
    theirs = torch.tensor([[7, 8], [6, 5], [0, 1]])

    def broadcast(tensor, src):
        assert src == 0
        tensor.copy_(theirs)

    group = SimpleNamespace(world_size=ranks, broadcast=broadcast)
    monkeypatch.setattr(drafter_pass, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    info = SimpleNamespace(
        temperatures=torch.ones(3, 1), top_ks=torch.full((3,), 1 << 30), sampling_seed=None, is_all_greedy=False
    )
    logits, draft_input, requests = torch.randn(3 * K, VOCAB), SimpleNamespace(), torch.tensor([3, 1, 2])
    batch = SimpleNamespace(sampling_info=info, reqs=[], req_pool_indices=requests)
    worker._set_drafts(draft_input, LogitsProcessorOutput(logits), batch, torch.arange(3))
    assert torch.equal(draft_input.topk_index, theirs) == (ranks == 2)
    drafted_from = worker.distributions.read(requests, draft_input.topk_index, None)
    torch.testing.assert_close(drafted_from, logits.view(3, K, VOCAB).softmax(-1))
