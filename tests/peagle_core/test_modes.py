"""flat = partition = stream: loss, counts and every gradient, in float64, for any packing, K, segments and chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import chains, stream, streams
from steps import SMALL, assert_same, cut, gradients, single, step, steps_at_both_precisions
from tiny import random_batch, tiny_config, tiny_drafter

from peagle_core.cod import sample_elements
from peagle_core.errors import InputError
from peagle_core.training import StepOptions, charged_elements, loss_and_backward

modes = st.one_of(
    st.fixed_dictionaries({"mode": st.just("partition"), "num_segments": st.integers(1, 7), "balanced": st.booleans()}),
    st.fixed_dictionaries({"mode": st.just("stream"), "chunk_rows": st.integers(1, 60)}),
)


@settings(max_examples=80)
@given(
    packed=streams(max_documents=4, max_size=16),
    num_depths=st.integers(1, 8),
    retention=st.sampled_from([0.6, 1.0]),
    mode=modes,
    attention=st.sampled_from(["dense", "torch"]),
    recompute=st.booleans(),
    options=st.sampled_from([{}, {"loss": "ce"}, {"weights": True}, {"draft_vocab_size": 7}]),
    seed=st.integers(0, 99),
)
def test_every_mode_is_flat(packed, num_depths, retention, mode, attention, recompute, options, seed):
    config = tiny_config(**SMALL, draft_vocab_size=options.get("draft_vocab_size"))
    drafter = tiny_drafter(config, seed)
    batch, head = random_batch(config, *packed, seed)
    elements = sample_elements(*packed, num_depths, retention, generator=torch.Generator().manual_seed(seed))
    common = {"target_head": head, "loss": options.get("loss", "kl")}
    if options.get("weights"):
        common["depth_weights"] = torch.linspace(0.3, 2.0, 8, dtype=torch.float64)
    expected = step(drafter, batch, elements, attention="dense", **common)
    assert_same(step(drafter, batch, elements, attention=attention, recompute=recompute, **mode, **common), expected)


@pytest.mark.parametrize("mode", ["flat", "partition", "stream"])
def test_counts_do_not_depend_on_the_mode(mode):
    # In "partition" a chain and its depth-0 row may lie in different segments; whole chains are counted all the same.
    config = tiny_config(**SMALL, draft_vocab_size=7)
    drafter = tiny_drafter(config)
    packed = stream("uuAAAAAAAAA", "AAAAAAAuuAAAAA", "..")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    flat = loss_and_backward(drafter, batch, elements, target_head=head)
    other = loss_and_backward(drafter, batch, elements, mode, target_head=head, num_segments=5, attention="dense")
    assert flat.chain_total.sum() > 0
    for a, b in zip(flat.tensors()[1:], other.tensors()[1:], strict=True):
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize("mode", [{"mode": "partition", "num_segments": 3}, {"mode": "stream", "chunk_rows": 9}])
def test_accumulated_single_documents_are_the_packed_row(mode):
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAAAAA", "AAAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 5, 1.0)
    whole = step(drafter, batch, elements, target_head=head)
    count = float(charged_elements(elements, batch, head, drafter.d2t).sum())
    drafter.zero_grad(set_to_none=True)
    loss_sum = 0.0
    for ends in ((0, 10), (10, 18)):
        part = loss_and_backward(
            drafter, single(batch, *ends), cut(elements, *ends), target_head=head, denominator=count, **mode
        )
        loss_sum += float(part.loss_sum)
    assert_same((loss_sum, gradients(drafter)), whole)


@pytest.mark.parametrize("mode", ["flat", "partition", "stream"])
@pytest.mark.parametrize("documents", [("A",), ("..",), ("uuuuuu",), ("AA",), ("A" * 90, "..." * 9)])
def test_shortest_longest_and_padded_rows_make_no_nan(mode, documents):
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream(*documents)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 8, 1.0)
    _, grads = step(drafter, batch, elements, target_head=head, mode=mode)
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("mode", ["flat", "partition", "stream"])
def test_autocast_stays_near_full_precision(mode):
    # Long: what thousands of rows share, mask_hidden above all, gets a sum of as many gradients.
    packed = stream("u" + 400 * "A", 300 * "A")
    grads, low_grads = steps_at_both_precisions(tiny_config(**SMALL), packed, mode)
    for name, grad in grads.items():
        assert low_grads[name].dtype == torch.float32
        assert (low_grads[name] - grad).norm() <= 0.06 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("mode", ["flat", "partition", "stream"])
def test_without_gradients_every_mode_only_measures(mode):
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = chains(packed[1], [3])
    with torch.no_grad():
        measured = loss_and_backward(drafter, batch, elements, mode, target_head=head)
    assert all(p.grad is None for p in drafter.parameters())
    trained = loss_and_backward(drafter, batch, elements, target_head=head)
    assert float(measured.loss_sum) == pytest.approx(float(trained.loss_sum), rel=1e-12)


def test_frozen_parameters_stay_without_gradient():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    frozen = ("lm_head.weight", "embed_tokens.weight", "mask_hidden")
    for name, parameter in drafter.named_parameters():
        parameter.requires_grad_(name not in frozen)
    expected = step(drafter, batch, elements, target_head=head)
    for mode in ("partition", "stream"):
        assert_same(step(drafter, batch, elements, target_head=head, mode=mode), expected)
        assert all(dict(drafter.named_parameters())[name].grad is None for name in frozen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "partition", "num_segments": 0}, "num_segments must be at least 1, found 0"),
        ({"mode": "stream", "chunk_rows": 0}, "chunk_rows must be at least 1, found 0"),
    ],
)
def test_bad_choices_are_refused(options, message):
    config = tiny_config(**SMALL)
    packed = stream("uAAAAAA")
    batch, head = random_batch(config, *packed)
    with pytest.raises(InputError, match=message):
        loss_and_backward(tiny_drafter(config), batch, sample_elements(*packed, 3, 1.0), target_head=head, **options)


def test_options_and_keywords_say_the_same():
    config = tiny_config(**SMALL)
    drafter, packed = tiny_drafter(config), stream("uAAAAAAAA", "AAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    weights = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    plain = step(drafter, batch, elements, target_head=head)
    expected = step(drafter, batch, elements, target_head=head, mode="stream", loss="ce", depth_weights=weights)
    assert plain[0] != expected[0]
    options = StepOptions(mode="stream", loss="ce", depth_weights=(1.0, 0.5, 0.25))
    assert_same(step(drafter, batch, elements, target_head=head, options=options), expected, 0.0)
    both = step(drafter, batch, elements, target_head=head, options=options, mode="flat", loss="kl", depth_weights=None)
    assert_same(both, plain, 0.0)
    with pytest.raises(TypeError, match="memory"):
        loss_and_backward(drafter, batch, elements, target_head=head, memory=1)
