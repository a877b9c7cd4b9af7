"""Sampled drafts: their ids and the distribution handed to verification belong together."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from chisquare import p_value

from sglang_backend import proposals
from sglang_backend.corrections.min_p import keep_min_p
from sglang_backend.cpu.torch_kernels import verify_sampling
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.proposals import propose_greedy, propose_sampled


@pytest.fixture(autouse=True)
def torch_draws(monkeypatch) -> None:
    """SGLang's switch from its Triton argmax to torch.multinomial."""
    monkeypatch.setenv("SGLANG_OPT_USE_GUMBEL_SAMPLE", "0")


def sampling_info(bs: int, temperature: float = 1.0, top_k: int = 1 << 30, seeds=None) -> SimpleNamespace:
    return SimpleNamespace(
        temperatures=torch.full((bs, 1), temperature),
        top_ks=torch.full((bs,), top_k),
        sampling_seed=seeds,
        is_all_greedy=top_k == 1,
    )


@pytest.fixture
def interpreted_hash(monkeypatch) -> None:
    """SGLang's hash of seed, position and token, its Triton kernel interpreted: a copy of the module, jitted so."""
    from sglang.kernels.ops.sampling import murmur_hash

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec(murmur_hash.__name__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)

    def hashed(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(seed), len(columns)), dtype=torch.uint32)
        copy.murmur_hash32_kernel[len(seed), 1](seed, positions, columns, out, len(seed), len(columns), BLOCK_SIZE=64)
        return out

    monkeypatch.setattr(murmur_hash, "murmur_hash32", hashed)


def test_seeded_drafts_depend_on_seed_and_place_alone(interpreted_hash):
    """`--enable-deterministic-inference`: who else is in the batch, and in which order, changes no draft."""
    bs, vocab = 12, 50
    logits = torch.randn(1, 1, vocab).expand(bs, 3, vocab)
    seeds, known = torch.arange(bs) % 3 + 41, torch.arange(bs) // 6 + 7
    drafts = propose_sampled(logits, None, sampling_info(bs, seeds=seeds), known).token_ids
    order = torch.randperm(bs)[:7]
    again = propose_sampled(logits[order], None, sampling_info(7, seeds=seeds[order]), known[order])
    assert torch.equal(again.token_ids, drafts[order])
    by_place = {(int(s), int(n)): tuple(d) for s, n, d in zip(seeds, known, drafts.tolist(), strict=True)}
    assert len(by_place) == 6 and len(set(by_place.values())) > 4
    assert any(len(set(d)) > 1 for d in by_place.values()), "each slot has a draw of its own"


def test_draft_ids_become_target_ids():
    logits = torch.randn(3, 2, 4)
    to_target = torch.tensor([1, 3, 5, 7])
    greedy = propose_greedy(logits, to_target)
    assert torch.equal(greedy.token_ids, to_target[logits.argmax(-1)]) and greedy.probs is None
    sampled = propose_sampled(logits, to_target, sampling_info(3), torch.arange(3))
    torch.testing.assert_close(sampled.probs, logits.softmax(-1))
    assert torch.isin(sampled.token_ids, to_target).all()


def test_a_gpu_takes_sglangs_argmax(monkeypatch):
    """Torch's gives a row to one block (finding F8). The kernel itself: test_draft_kernels."""
    calls, logits = [], torch.randn(2, 3, 7)

    class OnGpu(torch.Tensor):
        is_cuda = True

    def row_argmax(rows):
        calls.append(tuple(rows.shape))
        return rows.as_subclass(torch.Tensor).argmax(-1)

    monkeypatch.setattr(proposals, "row_argmax", row_argmax)
    assert torch.equal(propose_greedy(logits.as_subclass(OnGpu), None).token_ids, logits.argmax(-1))
    assert calls == [(6, 7)]
    propose_greedy(logits.bfloat16().as_subclass(OnGpu), None)
    assert len(calls) == 1, "it is for float32"


def test_greedy_requests_propose_their_argmax():
    logits = torch.randn(50, 3, 7)
    some = sampling_info(50)
    some.top_ks[:25] = 1
    sampled = propose_sampled(logits, None, some, torch.arange(50))
    assert torch.equal(sampled.token_ids[:25], logits[:25].argmax(-1))
    assert not torch.equal(sampled.token_ids[25:], logits[25:].argmax(-1))


def test_a_greedy_batch_computes_no_distributions(monkeypatch):
    monkeypatch.setattr(proposals, "sample_draft_proposal", None)
    logits, to_target = torch.randn(5, 3, 7), torch.tensor([0, 2, 4, 6, 8, 9, 10])
    sampled = propose_sampled(logits, to_target, sampling_info(5, top_k=1), torch.arange(5))
    assert torch.equal(sampled.token_ids, to_target[logits.argmax(-1)]) and sampled.probs is None


def test_all_slots_are_drawn_in_one_call(monkeypatch):
    calls, sample = [], proposals.sample_draft_proposal
    monkeypatch.setattr(
        proposals, "sample_draft_proposal", lambda logits, *a, **k: calls.append(len(logits)) or sample(logits, *a, **k)
    )
    logits = torch.randn(4, 5, 7)
    logits[2] *= 100  # sure of itself at every slot
    sampled = propose_sampled(logits, None, sampling_info(4, temperature=0.5), torch.arange(4))
    assert calls == [20]
    torch.testing.assert_close(sampled.probs, (logits / 0.5).softmax(-1))
    assert torch.equal(sampled.token_ids[2], logits[2].argmax(-1))


def test_a_reduced_draft_vocabulary_keeps_the_output_distribution():
    """Drafts over 3 of 6 tokens, then verification: the first committed token is distributed as the target."""
    bs, vocab = 60_000, 6
    to_target = torch.tensor([0, 2, 5])
    target = torch.tensor([0.3, 0.2, 0.25, 0.1, 0.05, 0.1])
    logits = torch.tensor([0.5, 1.0, -1.0]).expand(bs, 1, 3)
    proposal = propose_sampled(logits, to_target, sampling_info(bs, temperature=0.8), torch.arange(bs))
    distributions, requests = DraftDistributions(bs, 1, vocab, "cpu"), torch.randperm(bs)
    distributions.write(requests, proposal.probs, to_target)
    nodes = torch.arange(bs * 2).view(bs, 2)
    predicts, accept_index = torch.zeros(bs * 2, dtype=torch.int32), torch.full((bs, 2), -1, dtype=torch.int32)
    verify_sampling(
        predicts=predicts, accept_index=accept_index, accept_token_num=torch.zeros(bs, dtype=torch.int32),
        candidates=torch.cat([torch.zeros(bs, 1, dtype=torch.int64), proposal.token_ids], 1), retrive_index=nodes,
        retrive_next_token=None, retrive_next_sibling=None, uniform_samples=torch.rand(bs, 2),
        uniform_samples_for_final_sampling=torch.rand(bs), target_probs=target.expand(bs, 2, vocab),
        draft_probs=distributions.read(requests, proposal.token_ids, None),
    )  # fmt: skip
    first = predicts.view(bs, 2)[:, 0].long()
    assert p_value(first.bincount(minlength=vocab), target) > 1e-3


def test_min_p_keeps_what_the_sampler_keeps():
    probs = torch.tensor([[[0.5, 0.3, 0.15, 0.05]], [[0.4, 0.3, 0.2, 0.1]]])
    kept = keep_min_p(probs, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(kept[0, 0], torch.tensor([0.625, 0.375, 0.0, 0.0]))
    torch.testing.assert_close(kept[1], probs[1])
