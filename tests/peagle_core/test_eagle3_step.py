"""Training-time test: the fast step is the readable one, chain by chain; what it trains is what serving computes."""

from __future__ import annotations

import pytest
import torch
from eagle3 import chain_states, loss_eagle3
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import all_elements, stream, streams
from qkv import random_qkv
from steps import SMALL, assert_same, cut, gradients, single, steps_at_both_precisions
from tiny import VOCAB, random_batch, text_batch, tiny_config, tiny_drafter
from torch import Tensor
from variants import VARIANTS

from peagle_core.attention.chains import ChainAttention
from peagle_core.attention.dense import DenseAttention
from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.generate import DraftCache, draft_autoregressively, speculate
from peagle_core.target import target_head
from peagle_core.training import Batch, charged_elements, loss_and_backward

EAGLE3 = {**SMALL, "mask_token_id": None}
modes = st.one_of(
    st.just({"mode": "flat"}), st.fixed_dictionaries({"mode": st.just("stream"), "chunk_rows": st.integers(1, 60)})
)


def step(drafter: PEagleDrafter, batch: Batch, elements: Elements, **options) -> tuple[float, dict[str, Tensor]]:
    """Loss sum and all gradients of one call from zero."""
    drafter.zero_grad(set_to_none=True)
    metrics = loss_and_backward(drafter, batch, elements, **options)
    return float(metrics.loss_sum), gradients(drafter)


@settings(max_examples=50)
@given(
    packed=streams(max_documents=3, max_size=10),
    num_depths=st.integers(1, 6),
    retention=st.sampled_from([0.7, 1.0]),
    mode=modes,
    attention=st.sampled_from(["dense", "torch"]),
    recompute=st.booleans(),
    options=st.sampled_from([{}, {"loss": "ce"}, {"weights": True}, {"draft_vocab_size": 7}, {"num_hidden_layers": 1}]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradients_are_those_of_one_chain_at_a_time(
    packed, num_depths, retention, mode, attention, recompute, options, seed
):
    shape = {key: options[key] for key in ("draft_vocab_size", "num_hidden_layers") if key in options}
    drafter = tiny_drafter(tiny_config(**EAGLE3, **shape), seed)
    batch, head = random_batch(drafter.config, *packed, seed)
    elements = sample_elements(*packed, num_depths, retention, generator=torch.Generator().manual_seed(seed))
    charged = charged_elements(elements, batch, head, drafter.d2t)
    weights = torch.linspace(0.3, 2.0, 6, dtype=torch.float64) if options.get("weights") else None
    loss = options.get("loss", "kl")
    expected = loss_eagle3(drafter, batch, elements, charged, head, loss, weights)
    drafter.zero_grad(set_to_none=True)
    if charged.any():
        (expected / charged.sum()).backward()
    reference = float(expected.detach()), gradients(drafter)
    common = {"target_head": head, "loss": loss, "depth_weights": weights, "attention": attention}
    assert_same(step(drafter, batch, elements, recompute=recompute, **mode, **common), reference)


@settings(max_examples=40)
@given(
    streams(max_documents=3, max_size=12),
    st.integers(2, 6),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.integers(1, 20),
)
def test_a_chains_next_row_is_its_row_in_one_pass(packed, num_depths, heads, chunk_rows):
    # The rows of the last depth, given the context and their own chains, against the dense mask over everything.
    elements = all_elements(packed[1], num_depths)
    last = elements.depth == num_depths - 1
    assume(last.any())
    q, k, v = random_qkv(elements, *heads, 4, seed=0)
    grad = torch.randn_like(q[last])
    expected = DenseAttention(elements, packed[1])(q, k, v)[last]
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad, retain_graph=True)
    real = elements.depth == 0
    chain = last.nonzero() - torch.arange(num_depths - 2, -1, -1)  # [chains, d]: rows at depths 1 to d
    attention = ChainAttention(elements[last], packed[1], elements.anchor[real], chunk_rows)
    out = attention(q[last], k[chain], v[chain], (k[real], v[real]))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(out, (q, k, v), grad), expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def drafted(drafter: PEagleDrafter, aux: Tensor, prompt: Tensor, num_drafts: int) -> tuple[Tensor, Tensor]:
    """What the serve-time loop drafts after a prompt of n tokens with states [n-1, 3H_t], and the logits it saw."""
    logits: list[Tensor] = []
    hook = drafter.lm_head.register_forward_hook(lambda _, __, output: logits.append(output[-1]))
    drafts = draft_autoregressively(drafter, DraftCache(), prompt[1:], aux, num_drafts, 0)
    hook.remove()
    return drafts, torch.stack(logits)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_training_computes_what_autoregressive_drafting_computes(name, dtype, tolerance):
    # A text in which the drafts after one anchor came true: there, teacher forcing is what serving does.
    config = tiny_config(**{**VARIANTS[name], "mask_token_id": None})
    drafter, num_drafts, anchor = tiny_drafter(config, dtype=dtype, scale=1.5), 5, 8
    packed = stream("uuAAAA", "uuAAAAAAAAAAAAAA")
    batch, head = random_batch(config, *packed, dtype=dtype)
    text = batch.input_ids[6:]
    drafts, expected = drafted(drafter, batch.aux[6 : 7 + anchor], text[: anchor + 2], num_drafts)
    text[anchor + 2 : anchor + 2 + num_drafts] = drafts
    rows = sample_elements(*packed, num_drafts, 1.0).order("anchor")
    seen: list[Tensor] = []
    norm = drafter.norm.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    loss_and_backward(drafter, batch, rows, target_head=head, charged=torch.ones(len(rows), dtype=torch.bool))
    norm.remove()
    by_depth = torch.cat([rows.anchor[rows.depth == d] for d in range(num_drafts)])  # one chunk, depth by depth
    with torch.no_grad():
        trained = drafter.logits(seen[0][by_depth == 6 + anchor])
    torch.testing.assert_close(trained, expected, rtol=0, atol=tolerance)
    states = chain_states(drafter, batch, 6 + anchor, num_drafts)
    torch.testing.assert_close(drafter.logits(states).detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("draft_vocab", [None, 30])
def test_expected_accept_length_is_what_the_loop_accepts(tiny_target, draft_vocab):
    # On the target's own greedy text a chain of right drafts was fed just what serving would feed it.
    prompt, length, num_drafts = torch.randint(0, VOCAB, (6,)), 40, 4
    ids = tiny_target.generate(prompt[None], do_sample=False, max_new_tokens=length)[0]
    config = tiny_config(draft_vocab_size=draft_vocab, num_hidden_layers=1, mask_token_id=None)
    batch, head = text_batch(tiny_target, config, ids, len(prompt)), target_head(tiny_target)
    drafter = tiny_drafter(config, scale=1.0)
    elements = sample_elements(batch.loss_mask, batch.doc_ids, num_drafts, 1.0)
    optimizer = torch.optim.Adam(drafter.parameters(), lr=5e-3)
    for _ in range(25):
        optimizer.zero_grad()
        loss_and_backward(drafter, batch, elements, target_head=head)
        optimizer.step()
    with torch.no_grad():
        metrics = loss_and_backward(drafter, batch, elements, target_head=head)
    total, correct = [0] * num_drafts, [0] * num_drafts
    for anchor in range(len(prompt) - 1, len(ids) - 2):
        accepted = speculate(tiny_target, drafter, ids[: anchor + 1], num_drafts, 2).accept_lengths[0] - 1
        for depth in range(min(num_drafts, len(ids) - anchor - 2)):
            total[depth] += 1
            correct[depth] += accepted > depth
    assert metrics.chain_total.tolist() == total
    assert metrics.chain_correct.tolist() == correct
    assert 1.2 < metrics.expected_accept_length < num_drafts + 0.8, "neither always wrong nor always right"


def test_one_depth_is_the_parallel_step():
    packed = stream("uAAAAAAA", "AAAAA")
    parallel, eagle3 = tiny_drafter(tiny_config(**SMALL)), tiny_drafter(tiny_config(**EAGLE3))
    eagle3.load_state_dict({name: x for name, x in parallel.state_dict().items() if name != "mask_hidden"})
    batch, head = random_batch(parallel.config, *packed)
    elements = sample_elements(*packed, 1, 1.0)
    loss, grads = step(parallel, batch, elements, target_head=head)
    assert not grads.pop("mask_hidden").any()
    assert_same(step(eagle3, batch, elements, target_head=head), (loss, grads))


def test_accumulated_single_documents_are_the_packed_row():
    packed = stream("uAAAAAAAAA", "AAAAAAAA")
    drafter = tiny_drafter(tiny_config(**EAGLE3))
    batch, head = random_batch(drafter.config, *packed)
    elements = sample_elements(*packed, 5, 1.0)
    whole = step(drafter, batch, elements, target_head=head)
    count = float(charged_elements(elements, batch, head, drafter.d2t).sum())
    drafter.zero_grad(set_to_none=True)
    parts = [
        loss_and_backward(drafter, single(batch, *ends), cut(elements, *ends), target_head=head, denominator=count)
        for ends in ((0, 10), (10, 18))
    ]
    assert_same((float((parts[0] + parts[1]).loss_sum), gradients(drafter)), whole)


def test_every_row_is_computed_once_and_in_chunks():
    packed = stream("A" * 60, "A" * 40)
    drafter = tiny_drafter(tiny_config(**EAGLE3))
    batch, head = random_batch(drafter.config, *packed)
    elements = sample_elements(*packed, 8, 1.0)
    seen: list[int] = []
    drafter.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    loss_and_backward(drafter, batch, elements, "stream", target_head=head, chunk_rows=50)
    num_slots = int((elements.depth == 0).sum())
    assert seen[0] == num_slots
    assert sum(seen) == len(elements)
    assert max(seen[1:]) < 15, "of 50 elements, one depth at a time"
    seen.clear()
    loss_and_backward(drafter, batch, elements, target_head=head)
    assert len(seen) == 8, "one pass per depth"


@pytest.mark.parametrize("mode", ["flat", "stream"])
@pytest.mark.parametrize("documents", [("A",), ("..",), ("uuuuuu",), ("AA",), (), ("A" * 90, "..." * 9)])
def test_shortest_longest_and_padded_rows_make_no_nan(mode, documents):
    drafter = tiny_drafter(tiny_config(**EAGLE3))
    packed = stream(*documents)
    batch, head = random_batch(drafter.config, *packed)
    _, grads = step(drafter, batch, sample_elements(*packed, 8, 1.0), target_head=head, mode=mode)
    assert all(torch.isfinite(g).all() for g in grads.values())


def test_autocast_stays_near_full_precision():
    packed = stream("uAAAAAAAAAAAAAA", "AAAAAAAA")
    grads, low_grads = steps_at_both_precisions(tiny_config(**EAGLE3), packed, "flat")
    for name, grad in grads.items():
        assert (low_grads[name] - grad).norm() <= 0.08 * grad.norm() + 1e-6, name


def test_without_gradients_it_only_measures():
    drafter = tiny_drafter(tiny_config(**EAGLE3))
    packed = stream("uAAAAAA")
    batch, head = random_batch(drafter.config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    with torch.no_grad():
        measured = loss_and_backward(drafter, batch, elements, target_head=head)
    assert all(p.grad is None for p in drafter.parameters())
    assert float(measured.loss_sum) == pytest.approx(step(drafter, batch, elements, target_head=head)[0], rel=1e-12)


def test_what_only_mask_rows_can_do_is_refused(tiny_target):
    packed = stream("uAAAAAA")
    drafter = tiny_drafter(tiny_config(**EAGLE3))
    batch, head = random_batch(drafter.config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    with pytest.raises(InputError, match="unknown training mode 'partition'; choose from flat, stream"):
        loss_and_backward(drafter, batch, elements, "partition", target_head=head)
    eagle3 = tiny_drafter(tiny_config(mask_token_id=None))
    with pytest.raises(InputError, match="cannot draft in parallel"):
        speculate(tiny_target, eagle3, torch.tensor([1, 2]), 3, 4, autoregressive=False)
