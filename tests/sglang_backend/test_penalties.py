"""Penalties of verified rows against a loop over the tokens before each row."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sglang")

from sglang_backend.corrections.penalties import Strengths, count_accepted, is_penalised, penalise

VOCAB = 6


@given(st.data())
def test_each_row_is_penalised_for_the_tokens_before_it(data):
    bs, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    token = st.integers(0, VOCAB - 1)
    outputs = [data.draw(st.lists(token, max_size=6)) for _ in range(bs)]
    drafts = torch.tensor([data.draw(st.lists(token, min_size=k, max_size=k)) for _ in range(bs)])
    strength = st.floats(-2, 2, width=32)
    frequency, presence = ([data.draw(strength) for _ in range(bs)] for _ in range(2))
    repetition = [data.draw(st.floats(0.5, 2, width=32)) for _ in range(bs)]
    minimum = [data.draw(st.integers(0, 9)) for _ in range(bs)]
    stop = data.draw(token)
    counts = torch.stack([torch.tensor(o, dtype=torch.int64).bincount(minlength=VOCAB) for o in outputs]).short()
    stops = torch.zeros(bs, VOCAB, dtype=torch.bool)
    stops[:, stop] = True
    logits = torch.randn(bs, k + 1, VOCAB)
    expected = logits.clone()
    for i in range(bs):
        for row in range(k + 1):
            before = outputs[i] + drafts[i, :row].tolist()
            if len(before) < minimum[i]:
                expected[i, row, stop] = -torch.inf
            for t in set(before):
                x = expected[i, row, t] - before.count(t) * frequency[i] - presence[i]
                expected[i, row, t] = x * repetition[i] if x < 0 else x / repetition[i]
    missing = torch.tensor([m - len(o) for m, o in zip(minimum, outputs, strict=True)])
    columns = [torch.tensor(x)[:, None] for x in (frequency, presence, repetition)]
    penalise(logits, drafts, counts, stops, Strengths(*columns, missing[:, None]))
    torch.testing.assert_close(logits, expected)


def test_accepted_tokens_are_counted():
    counts = torch.zeros(2, 5, dtype=torch.int16)
    after = count_accepted(counts, torch.tensor([[1, 1, 3], [2, 4, 4]]), torch.tensor([3, 1]))
    assert after.tolist() == [[0, 2, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert not counts.any()


@pytest.mark.parametrize(
    "name, value",
    [("frequency_penalty", 0.1), ("presence_penalty", -1.0), ("repetition_penalty", 1.1), ("min_new_tokens", 2)],
)
def test_any_penalty_counts(name, value):
    none = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    assert not is_penalised(SimpleNamespace(sampling_params=SimpleNamespace(**none)))
    assert is_penalised(SimpleNamespace(sampling_params=SimpleNamespace(**{**none, name: value})))
