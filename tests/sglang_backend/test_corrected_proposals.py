"""Drafts that follow from each other: the reference loop's, in distribution what verification asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from chisquare import p_value
from tiny import tiny_config, tiny_drafter

pytest.importorskip("sglang")

from sglang.srt.layers.logits_processor import LogitsProcessorOutput

from peagle_core.correction import Told
from peagle_core.draft_vocabulary import draft_ids, draft_vocab_ids
from peagle_core.generate import chain_logits, choose_drafts
from peagle_core.told import NONE, outright, told_of_chain
from sglang_backend import drafter_pass, proposals
from sglang_backend.cpu.torch_kernels import verify_sampling
from sglang_backend.draft_distributions import DraftDistributions
from sglang_backend.drafter_pass import DrafterPass
from sglang_backend.graphs import DraftGraphs
from sglang_backend.kernels import chain as chain_kernels
from sglang_backend.proposals import Chain, propose_greedy, propose_sampled
from sglang_backend.texts import Texts

BS, K, VOCAB, WIDTH = 5, 4, 61, 24


@pytest.fixture(autouse=True)
def torch_draws(monkeypatch) -> None:
    monkeypatch.setenv("SGLANG_OPT_USE_GUMBEL_SAMPLE", "0")


@pytest.fixture
def drafter():
    return tiny_drafter(tiny_config(draft_vocab_size=20, correction_rank=6), dtype=torch.float32)


def served(drafter) -> SimpleNamespace:
    """What a chain asks of `PEagleForCausalLM`, over the reference's weights."""

    table = draft_ids(draft_vocab_ids(drafter.d2t), drafter.config.vocab_size)

    def correct(logits, normed, told, found, match):
        draft_id = table[found]
        logits.copy_(drafter.correction(logits, normed, Told(torch.stack(told, 1), found, match, draft_id)))
        return outright(found, match, draft_id)

    def embedded(ids):
        return drafter.embed_tokens(ids.clamp(min=0)) * (ids != NONE)[:, None]

    return SimpleNamespace(correct=correct, embedded=embedded, drafted_outright=lambda ids: table[ids] == NONE)


def texts(vocab: int = 6) -> torch.Tensor:
    """[BS, W], full of repetitions; the second is of three tokens."""
    text = torch.randint(0, vocab, (BS, 40))
    text[1, :-3] = NONE
    return text


def chain_logits_of_all(drafter, states, text, drafts) -> torch.Tensor:
    """[BS, K, V_d] of the reference loop, whose texts have a first token that nobody reads."""
    known = [torch.cat([torch.tensor([0]), row[row != NONE]]) for row in text]
    return torch.stack([chain_logits(drafter, *one) for one in zip(states, known, drafts, strict=True)])


def sampling_info(bs: int, top_k: int = 1 << 30) -> SimpleNamespace:
    return SimpleNamespace(
        temperatures=torch.full((bs, 1), 0.7), top_ks=torch.full((bs,), top_k), sampling_seed=None,
        is_all_greedy=top_k == 1,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("sampled", [False, True])
def test_greedy_drafts_are_the_reference_loops(drafter, sampled):
    to_target = drafter.target_ids(torch.arange(20))
    states, text = torch.randn(BS, K, WIDTH), texts()
    logits = drafter.lm_head(states)
    known = [torch.cat([torch.tensor([0]), row[row != NONE]]) for row in text]
    expected = torch.stack([choose_drafts(drafter, *pair) for pair in zip(states, known, strict=True)])
    corrected = chain_logits_of_all(drafter, states, text, expected)
    chain = Chain(served(drafter), states, text)
    if sampled:
        found = propose_sampled(logits, to_target, sampling_info(BS, top_k=1), torch.arange(BS), chain)
    else:
        found = propose_greedy(logits, to_target, chain)
    assert torch.equal(found.token_ids, expected)
    torch.testing.assert_close(logits, corrected)  # what is recorded of a pass
    is_outright = ~torch.isin(expected, to_target)
    assert is_outright.any() and not is_outright.all(), "texts of this test repeat tokens that have no logit, too"


@torch.no_grad()
def test_each_distribution_is_that_of_the_corrected_row(drafter):
    to_target = drafter.target_ids(torch.arange(20))
    states, text = torch.randn(BS, K, WIDTH), texts()
    chain = Chain(served(drafter), states, text)
    found = propose_sampled(drafter.lm_head(states), to_target, sampling_info(BS), torch.arange(BS), chain)
    corrected = chain_logits_of_all(drafter, states, text, found.token_ids)
    drawn = torch.isin(found.token_ids, to_target)
    assert drawn.sum() > BS and not drawn.all()
    torch.testing.assert_close(found.probs, (corrected / 0.7).softmax(-1) * drawn[..., None])


@torch.no_grad()
def test_verification_gives_the_targets_distribution():
    """Two drafts over 3 of 6 tokens, the second far from independent of the first: both tokens are the target's.

    In one request of three both drafts are a fourth token, found in its text and drafted outright.
    """
    bs, vocab = 60_000, 6
    to_target = torch.tensor([0, 2, 5])
    first, second = torch.tensor([0.3, 0.2, 0.25, 0.1, 0.05, 0.1]), torch.tensor([0.1, 0.3, 0.2, 0.05, 0.05, 0.3])
    logits = torch.tensor([[0.5, 1.0, -1.0], [0.2, 0.0, 0.4]]).repeat(bs, 1, 1)
    table = torch.zeros(vocab, 3)
    table[to_target] = torch.tensor([[3.0, 0.0, -2.0], [-2.0, 1.0, 1.0], [0.0, -3.0, 2.0]])
    draft_id = draft_ids(to_target, vocab)

    def correct(row, _, told, found, match):
        row += told[0]
        return outright(found, match, draft_id[found])

    text = torch.tensor([[1, 1, 1], [3, 4, 1], [3, 1, 4]]).repeat(bs // 3, 1)
    by_table = SimpleNamespace(correct=correct, embedded=lambda ids: table[ids])
    chain = Chain(by_table, torch.zeros(bs, 2, 0), text)
    proposal = propose_sampled(logits, to_target, sampling_info(bs), torch.arange(bs), chain)
    assert (proposal.token_ids == 1).sum(1).bincount().tolist() == [bs * 2 // 3, 0, bs // 3]
    distributions = DraftDistributions(bs, 2, vocab, "cpu")
    distributions.write(torch.arange(bs), proposal.probs, to_target)
    distributions.be_certain(torch.arange(bs), proposal.token_ids, draft_id[proposal.token_ids] == NONE)
    assert torch.allclose(distributions.probs.sum(-1), torch.ones(bs, 2))
    nodes = torch.arange(bs * 3).view(bs, 3)
    predicts, accept_index = torch.zeros(bs * 3, dtype=torch.int32), torch.full((bs, 3), -1, dtype=torch.int32)
    stood = torch.zeros(bs, dtype=torch.int32)
    verify_sampling(
        predicts=predicts, accept_index=accept_index, accept_token_num=stood,
        candidates=torch.cat([torch.zeros(bs, 1, dtype=torch.int64), proposal.token_ids], 1), retrive_index=nodes,
        retrive_next_token=None, retrive_next_sibling=None, uniform_samples=torch.rand(bs, 3),
        uniform_samples_for_final_sampling=torch.rand(bs),
        target_probs=torch.stack([first, second, first]).expand(bs, 3, vocab), draft_probs=distributions.probs,
    )  # fmt: skip
    tokens = predicts.view(bs, 3).long()
    assert p_value(tokens[:, 0].bincount(minlength=vocab), first) > 1e-3
    for token in (1, *to_target.tolist()):  # the second, whatever the first was
        after = tokens[(stood >= 1) & (tokens[:, 0] == token), 1]
        assert len(after) > 1000
        assert p_value(after.bincount(minlength=vocab), second) > 1e-3


def worker(drafter, samples: bool, texts_of: Texts) -> DrafterPass:
    made = object.__new__(DrafterPass)
    made.speculative_num_steps = made.relay_width = K
    made.samples_drafts, made.recorder, made.certain = samples, None, torch.ones(1)
    made.distributions = DraftDistributions(BS + 1, K, VOCAB + 3, "cpu")
    made.hot_token_id = drafter.target_ids(torch.arange(20))
    made.target_worker = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCAB + 3))
    made.draft_runner = SimpleNamespace(model=served(drafter))
    made.draft_runner.model.texts = texts_of
    return made


@torch.no_grad()
def test_all_ranks_verify_the_first_ranks_draws_with_its_distributions(drafter, monkeypatch):
    """What follows from a draft must follow from the draft that is verified, on every rank."""
    theirs = drafter.target_ids(torch.randint(0, 20, (K, BS)))
    calls = iter(theirs)
    group = SimpleNamespace(world_size=2, broadcast=lambda drafts, src: drafts.copy_(next(calls)))
    monkeypatch.setattr(drafter_pass, "get_parallel", lambda: SimpleNamespace(tp_group=group))
    states, lengths = torch.randn(BS, K, WIDTH), torch.tensor([20, 3, 30, 11, 2])
    logits = drafter.lm_head(states)
    draft_input = SimpleNamespace()
    texts_of = Texts(BS * 32 + 32, torch.arange((BS + 1) * 32, dtype=torch.int32).view(BS + 1, 32))
    texts_of.write(torch.arange(BS * 32 + 32), torch.randint(0, 6, (BS * 32 + 32,), dtype=torch.int32))
    requests, made = torch.randperm(BS) + 1, worker(drafter, True, texts_of)
    text = texts_of.read(requests, lengths)
    assert [(row != NONE).sum() for row in text] == lengths.tolist()
    assert torch.equal(text[0, -20:], texts_of.token_behind.view(BS + 1, 32)[requests[0], :20])
    batch = SimpleNamespace(
        sampling_info=sampling_info(BS), reqs=[], req_pool_indices=requests, seq_lens_cpu=lengths - 1
    )
    output = LogitsProcessorOutput(logits.flatten(0, 1), hidden_states=states.flatten(0, 1))
    made._set_drafts(draft_input, output, batch, lengths)
    assert torch.equal(draft_input.topk_index, theirs.T)
    ids = drafter.target_ids(torch.arange(20))
    expected = (chain_logits_of_all(drafter, states, text, draft_input.topk_index) / 0.7).softmax(-1)
    for request, (row, drafts) in enumerate(zip(text, theirs.T, strict=True)):
        told = told_of_chain(row[row != NONE], torch.cat([row[-1:], drafts[:-1]]))
        expected[request, drafter.outright(told)] = 0  # certain of another token
    torch.testing.assert_close(made.distributions.probs[requests][..., ids], expected)


@torch.no_grad()
def test_a_graph_finds_the_text_from_the_row_of_the_first_draft(drafter):
    graphs = object.__new__(DraftGraphs)
    graphs.num_drafts = 3
    model = SimpleNamespace(texts=Texts(40, torch.arange(40, dtype=torch.int32).view(4, 10)))
    model.texts.write(torch.arange(40), torch.arange(100, 140))
    graphs.model_runner = SimpleNamespace(model=model)
    select = torch.tensor([1, 2, 3, 6, 7, 8])
    positions = torch.tensor([3, 4, 5, 6, 7, 7, 2, 3, 4, 5, 5, 5])
    batch = SimpleNamespace(
        positions=positions, req_pool_indices=torch.tensor([2, 1]), spec_info=SimpleNamespace(select_index=select)
    )
    chain = graphs._chain(batch, torch.arange(12.0).view(6, 2))
    assert chain.text.tolist() == [[NONE] * 5 + [120, 121, 122, 123, 124], [NONE] * 7 + [110, 111, 112]]
    assert chain.model is model and chain.states[1, 0].tolist() == [6, 7]
    assert graphs._chain(batch, None) is None


def test_without_a_correction_drafts_are_chosen_at_once(monkeypatch):
    monkeypatch.setattr(proposals, "_draw_in_turn", None)
    logits = torch.randn(BS, K, 20)
    found = propose_sampled(logits, None, sampling_info(BS), torch.arange(BS))
    torch.testing.assert_close(found.probs, (logits / 0.7).softmax(-1))


def test_a_gpu_seeks_in_one_launch(monkeypatch):
    """The kernel itself: test_chain_kernels."""
    sought = []
    monkeypatch.setattr(chain_kernels, "SoughtMatches", sought.append)

    class OnGpu(torch.Tensor):
        is_cuda = True

    text = texts()
    Chain(SimpleNamespace(), torch.zeros(BS, K, 0), text.as_subclass(OnGpu))
    assert len(sought) == 1 and torch.equal(sought[0], text)
    Chain(SimpleNamespace(), torch.zeros(BS, K, 0), text)
    assert len(sought) == 1
