"""One training step, mode "flat": what is charged, against which label, and that packing and padding change nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import Stream, all_elements, documents, stream, streams
from rules import is_supervised
from steps import SMALL, assert_same, cut, gradients, single, step
from tiny import random_batch, tiny_config, tiny_drafter
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.training import Batch, charged_elements, forward_elements, loss_and_backward


def target_ids(config: PEagleConfig, d2t: Tensor) -> list[int]:
    return [i + int(d2t[i]) for i in range(config.draft_vocab_size)]


def reference_loss(
    drafter: PEagleDrafter, batch: Batch, elements: Elements, head: Tensor, loss: str, weights: list[float]
) -> tuple[Tensor, int]:
    """docs/elements.md one element at a time: full logits, torch's own loss functions, label head(y_{a+d+1})."""
    ids = target_ids(drafter.config, drafter.d2t)
    elements = elements.order("anchor")
    logits = drafter.logits(forward_elements(drafter, batch, elements, "dense"))
    mask, docs = batch.loss_mask.tolist(), batch.doc_ids.tolist()
    total, charged = logits.new_zeros(()), 0
    for row, (a, d) in enumerate(zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True)):
        if not is_supervised(a, d, mask, docs):
            continue
        label = head @ batch.final_hidden[a + d + 1]
        if int(label.argmax()) not in ids:
            continue
        charged += 1
        label, log_q = label[ids], logits[row].log_softmax(-1)
        if loss == "kl":
            value = F.kl_div(log_q, label.softmax(-1), reduction="sum")
        else:
            value = F.nll_loss(log_q, label.argmax())
        total = total + weights[d] * value
    return total, charged


@settings(max_examples=25)
@given(
    packed=streams(max_documents=3, max_size=10),
    loss=st.sampled_from(["kl", "ce"]),
    draft_vocab=st.sampled_from([None, 7]),
    weights=st.sampled_from([None, [1.0, 0.5, 0.25, 2.0]]),
    seed=st.integers(0, 9),
)
def test_flat_is_the_definition(packed, loss, draft_vocab, weights, seed):
    config = tiny_config(**SMALL, draft_vocab_size=draft_vocab)
    drafter = tiny_drafter(config, seed)
    batch, head = random_batch(config, *packed, seed)
    elements = sample_elements(*packed, 4, 0.8, generator=torch.Generator().manual_seed(seed))
    depth_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    options = {"target_head": head, "loss": loss, "depth_weights": depth_weights}
    loss_sum, grads = step(drafter, batch, elements, **options)
    drafter.zero_grad(set_to_none=True)
    expected, charged = reference_loss(drafter, batch, elements, head, loss, weights or [1.0] * 4)
    if charged:
        (expected / charged).backward()
    assert_same((loss_sum, grads), (float(expected.detach()), gradients(drafter)))
    total = loss_and_backward(drafter, batch, elements, **options).total
    assert int(total.sum()) == charged


@settings(max_examples=25)
@given(st.lists(documents(10), min_size=2, max_size=4), st.sampled_from([None, 7]), st.integers(0, 9))
def test_packed_is_one_document_at_a_time(texts, draft_vocab, seed):
    config = tiny_config(**SMALL, draft_vocab_size=draft_vocab)
    drafter = tiny_drafter(config, seed)
    packed: Stream = stream(*texts)
    batch, head = random_batch(config, *packed, seed)
    elements = sample_elements(*packed, 5, 0.8, generator=torch.Generator().manual_seed(seed))
    options = {"target_head": head, "denominator": 7.0}
    together = step(drafter, batch, elements, **options)
    drafter.zero_grad(set_to_none=True)
    loss_sum, start = 0.0, 0
    for text in texts:
        stop = start + len(text)
        one = loss_and_backward(drafter, single(batch, start, stop), cut(elements, start, stop), **options)
        loss_sum, start = loss_sum + float(one.loss_sum), stop
    assert_same(together, (loss_sum, gradients(drafter)))


def test_padding_changes_nothing_even_with_garbage_in_it():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    bare, padded = stream("uAAAAAA"), stream("uAAAAAA", "....")
    batch, head = random_batch(config, *bare)
    filler, _ = random_batch(config, *padded, seed=1)
    fields = {
        name: torch.cat([value, getattr(filler, name)[7:]]) for name, value in vars(batch).items() if name != "doc_ids"
    }
    fields["aux"][7:], fields["final_hidden"][7:], fields["loss_mask"][7:] = torch.nan, torch.nan, True
    with_padding = Batch(**fields, doc_ids=padded[1])
    elements = sample_elements(*bare, 4, 1.0)
    padded_elements = sample_elements(with_padding.loss_mask, padded[1], 4, 1.0)
    assert padded_elements.anchor.tolist() == elements.anchor.tolist()
    expected = step(drafter, batch, elements, target_head=head)
    assert_same(step(drafter, with_padding, padded_elements, target_head=head), expected)


def test_the_order_of_the_elements_does_not_matter():
    config = tiny_config(**SMALL, draft_vocab_size=7)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAAAA", "AAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 0.8)
    shuffled = elements[torch.randperm(len(elements))]
    charged = charged_elements(shuffled, batch, head, drafter.d2t)
    expected = step(drafter, batch, elements, target_head=head)
    assert_same(step(drafter, batch, shuffled, target_head=head), expected)
    assert_same(step(drafter, batch, shuffled, target_head=head, charged=charged), expected)


def test_backends_agree_in_a_whole_step():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAAAA", "AAAAA", "..", "uuAAAAuAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    dense, parts = (step(drafter, batch, elements, target_head=head, attention=name) for name in ("dense", "torch"))
    assert_same(dense, parts)


def test_two_batches_with_one_denominator_are_one_batch():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAA", "AAAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    whole = step(drafter, batch, elements, target_head=head)  # its own number of charged elements divides
    count = int(charged_elements(elements, batch, head, drafter.d2t).sum())
    drafter.zero_grad(set_to_none=True)
    parts = [
        loss_and_backward(
            drafter, single(batch, *ends), cut(elements, *ends), target_head=head, denominator=float(count)
        )
        for ends in ((0, 7), (7, 15))
    ]
    total = parts[0] + parts[1]
    assert_same(whole, (float(total.loss_sum), gradients(drafter)))
    assert int(total.total.sum()) == count


@pytest.mark.parametrize("documents", [("uuuuuu",), ("A",), ("..",), ("AA",), ("uA", "A", "uu")])
def test_nothing_to_charge_gives_zero_and_no_nan(documents):
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream(*documents)
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 3, 0.8)
    for denominator in (None, 5.0):
        loss_sum, grads = step(drafter, batch, elements, target_head=head, denominator=denominator)
        assert loss_sum == 0.0
        assert not any(g.any() for g in grads.values())
    metrics = loss_and_backward(drafter, batch, elements, target_head=head)
    assert metrics.loss == 0.0
    assert metrics.expected_accept_length == 1.0


def test_labels_outside_the_draft_vocabulary_are_dropped_and_only_they():
    config = tiny_config(**SMALL, draft_vocab_size=7)
    drafter = tiny_drafter(config)
    packed = stream("A" * 40)
    batch, head = random_batch(config, *packed)
    elements = all_elements(packed[1], 3)
    ids = set(target_ids(config, drafter.d2t))
    assert ids == {0, 3, 6, 9, 12, 15, 18}
    mask, docs = packed[0].tolist(), packed[1].tolist()
    expected = [
        is_supervised(a, d, mask, docs) and int((head @ batch.final_hidden[a + d + 1]).argmax()) in ids
        for a, d in zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True)
    ]
    assert charged_elements(elements, batch, head, drafter.d2t).tolist() == expected
    assert 0 < sum(expected) < len(expected) / 2


def test_without_gradients_it_only_measures():
    config = tiny_config(**SMALL)
    drafter = tiny_drafter(config)
    packed = stream("uAAAAAA")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 3, 1.0)
    with torch.no_grad():
        measured = loss_and_backward(drafter, batch, elements, target_head=head)
    assert all(p.grad is None for p in drafter.parameters())
    trained = loss_and_backward(drafter, batch, elements, target_head=head)
    assert float(measured.loss_sum) == pytest.approx(float(trained.loss_sum), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "unknown training mode 'fast'"),
        ({"loss": "mse"}, "unknown loss 'mse'"),
        ({"attention": "flex"}, "unknown attention backend 'flex'"),
    ],
)
def test_unknown_choices_are_refused(options, message):
    config = tiny_config(**SMALL)
    packed = stream("uAAAAAA")
    batch, head = random_batch(config, *packed)
    with pytest.raises(InputError, match=message):
        loss_and_backward(tiny_drafter(config), batch, sample_elements(*packed, 3, 1.0), target_head=head, **options)


def test_document_starts_count_positions_from_zero_in_every_document():
    config = tiny_config(**SMALL)
    packed = stream("AAA", "A", "..", "AA")
    batch, _ = random_batch(config, *packed)
    assert batch.doc_starts.tolist() == [0, 0, 0, 3, 4, 4, 6, 6]
