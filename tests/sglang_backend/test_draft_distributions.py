"""What sampled drafts were drawn from, between two steps: places of requests that come, go and change K."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot

pytest.importorskip("sglang")

from sglang.srt.layers.logits_processor import LogitsProcessorOutput

from sglang_backend import drafter_pass
from sglang_backend.counters import Counters
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.drafter_pass import DrafterPass

REQUESTS, K, V = 6, 4, 9
TO_TARGET = torch.tensor([7, 0, 3, 8])  # a draft vocabulary


def drawn(bs: int, k: int, size: int) -> torch.Tensor:
    return torch.randn(bs, k, size).softmax(-1)


@pytest.mark.parametrize("to_target", [None, TO_TARGET])
@pytest.mark.parametrize("k", [K, 2])
def test_what_is_written_is_read(k, to_target):
    """By other batches, too, in any order; what the drafter cannot propose has no probability."""
    kept, requests = DraftDistributions(REQUESTS, K, V, "cpu"), torch.tensor([5, 1, 3])
    kept.probs.fill_(0.5)  # of requests before them
    probs = drawn(3, k, V if to_target is None else len(to_target))
    kept.write(requests, probs, to_target)
    expected = probs if to_target is None else torch.zeros(3, k, V).index_copy_(2, to_target, probs)
    drafts = torch.zeros(2, k, dtype=torch.int64)
    assert torch.equal(kept.read(requests[[2, 0]], drafts, None), expected[[2, 0]])
    assert kept.probs[[0, 2, 4]].eq(0.5).all(), "places of others"


def test_slots_without_a_draft_are_refused():
    """K rises: the tokens that are missing for one step have no probability, with which SGLang refuses a draft."""
    kept, requests = DraftDistributions(REQUESTS, K, V, "cpu"), torch.tensor([2])
    kept.write(requests, drawn(1, K, V), None)
    kept.write(requests, drawn(1, 2, V), None)
    assert kept.read(requests, torch.zeros(1, K, dtype=torch.int64), None)[:, 2:].eq(0).all()


def test_a_head_of_fewer_tokens_without_a_table():
    kept, requests, probs = DraftDistributions(REQUESTS, K, V, "cpu"), torch.tensor([4, 0]), drawn(2, K, 5)
    kept.write(requests, probs, None)
    read = kept.read(requests, torch.zeros(2, K, dtype=torch.int64), None)
    assert torch.equal(read[..., :5], probs) and read[..., 5:].eq(0).all()


def test_greedy_requests_are_certain_of_their_drafts():
    """Whatever was left in their places: nothing is written while all of a batch is greedy."""
    kept, requests, greedy = (
        DraftDistributions(REQUESTS, K, V, "cpu"),
        torch.tensor([1, 2]),
        torch.tensor([True, False]),
    )
    probs, drafts = drawn(2, K, V), torch.randint(0, V, (2, K))
    kept.write(requests, probs, None)
    read = kept.read(requests, drafts, greedy)
    assert torch.equal(read[0], one_hot(drafts[0], V).float()) and torch.equal(read[1], probs[1])
    assert torch.equal(kept.probs[requests], probs), "reading changes no place"


@pytest.mark.parametrize("others", [[], [50]])
def test_a_batch_touches_distributions_only_if_some_request_samples(monkeypatch, others):
    """top_k of requests; 1 is SGLang's word for greedy."""
    top_ks = [1, *others]
    bs, calls = len(top_ks), []
    worker = object.__new__(DrafterPass)
    worker.speculative_num_steps = worker.relay_width = K
    worker.samples_drafts, worker.hot_token_id, worker.recorder, worker.certain = True, None, None, torch.ones(1)
    worker.distributions, worker.counters = DraftDistributions(REQUESTS, K, V, "cpu"), Counters()
    worker.draft_runner = SimpleNamespace(model=SimpleNamespace(correction=None, drafted_outright=lambda _: None))
    worker.target_worker = worker.tree_mask_mode = worker.device = None
    worker._topk1_parents_prealloc = worker._topk1_score_indices_prealloc = torch.zeros(REQUESTS, 1)
    for name in ("write", "read"):
        call = getattr(worker.distributions, name)
        monkeypatch.setattr(worker.distributions, name, lambda *a, n=name, f=call: calls.append(n) or f(*a))
    monkeypatch.setattr(drafter_pass, "build_eagle_verify_input", lambda *args, **_: args[-1])
    monkeypatch.setattr(drafter_pass, "get_parallel", lambda: SimpleNamespace(tp_group=SimpleNamespace(world_size=1)))
    monkeypatch.setenv("SGLANG_OPT_USE_GUMBEL_SAMPLE", "0")  # torch draws, where SGLang has Triton
    sampling = SimpleNamespace(
        temperatures=torch.ones(bs, 1), top_ks=torch.tensor(top_ks), sampling_seed=None, is_all_greedy=not others,
        need_top_k_sampling=True,
    )  # fmt: skip
    batch = SimpleNamespace(
        sampling_info=sampling, reqs=[], req_pool_indices=torch.arange(bs) + 1, seq_lens=torch.arange(bs),
        spec_info=SimpleNamespace(),
    )  # fmt: skip
    worker._set_drafts(batch.spec_info, LogitsProcessorOutput(torch.randn(bs * K, V)), batch, torch.arange(bs))
    probs = worker.draft(batch)
    assert calls == (["write", "read"] if others else [])
    assert (probs is not None) == bool(others) and batch.spec_info.draft_probs is None
