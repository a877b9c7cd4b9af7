"""The kernels of a chain of drafts, under Triton's interpreter, against the torch references.

(mechanism: see tests/peagle_core/test_attention_triton.py)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiled import compiled, compiles
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted, outside, run_under_the_interpreter

pytest.importorskip("triton")
pytest.importorskip("sglang")

from peagle_core.draft_vocabulary import draft_ids
from peagle_core.told import LONGEST, MATCHES, NONE, SURE, Matches
from sglang_backend.kernels import chain
from sglang_backend.served_correction import correct_logits

SIZE, RANK = 40, 6


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@st.composite
def texts(draw) -> torch.Tensor:
    """int64[bs, W] of few different tokens, with NONE in front; some are one run again and again."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 80))
    made = []
    for _ in range(rows):
        run = draw(st.lists(st.integers(0, 2), min_size=1, max_size=LONGEST + 5))
        row = (run * width)[: draw(st.integers(1, width))]
        made.append([NONE] * (width - len(row)) + row)
    return torch.tensor(made)


@interpreted
@settings(max_examples=40)
@given(texts(), st.lists(st.integers(0, 3), max_size=6), st.sampled_from([16, 1024]))
def test_what_is_found_is_the_references(text, drafts, places):
    """Over one block of places and over several; a text of one token has no place to find anything."""
    whole, chain.PLACES = chain.PLACES, places
    try:
        ours = chain.SoughtMatches(text)
        theirs = Matches(torch.nn.functional.pad(text, (1, 0), value=NONE))  # no place more: nothing ends at a NONE
        for draft in [None, *drafts]:
            if draft is not None:
                token = torch.full((len(text),), draft)
                ours.follow(token)
                theirs.follow(token)
            for found, expected in zip(ours.best(), theirs.best(), strict=True):
                assert found.dtype == torch.int64 and torch.equal(found, expected)
    finally:
        chain.PLACES = whole


def rows(bs: int, vocab: int, table: bool) -> dict[str, Any]:
    """Arguments of a correction of bs rows; some have found nothing, some what has no logit, one what nobody knows."""
    found = torch.randint(NONE, SIZE, (bs,))
    found[-1] = SIZE + 100
    return {
        "logits": torch.randn(bs, 3, vocab)[:, 1], "added": torch.randn(bs, vocab),
        "features": torch.randn(bs, RANK), "copy_weight": torch.randn(RANK), "copy_bias": torch.randn(1 + MATCHES),
        "found": found, "match": torch.randint(0, 1 + MATCHES, (bs,)),
        "draft_of": draft_ids(torch.randperm(SIZE)[:vocab], SIZE) if table else None, "vocab_size": SIZE,
    }  # fmt: skip


@interpreted
@pytest.mark.parametrize("columns", [16, 1024])
@pytest.mark.parametrize("table", [False, True])
def test_corrected_logits_are_the_references(table, columns, monkeypatch):
    monkeypatch.setattr(chain, "COLUMNS", columns)
    for _ in range(20):
        case = rows(9, 25 if table else SIZE, table)
        whole = case["logits"]._base.clone()
        expected = case["logits"].clone()
        outright = chain.correct(**case)
        assert torch.equal(outright, correct_logits(**case | {"logits": expected})) and outright.dtype == torch.bool
        assert outright.any() or not table
        torch.testing.assert_close(case["logits"], expected)
        assert torch.equal(case["logits"]._base[:, [0, 2]], whole[:, [0, 2]]), "the rows of other drafts"


TYPES = """
*i64 TEXT TOKEN FOUND MATCH DRAFT_OF
*i32 BEFORE LENGTHS
*fp32 LOGITS
*bf16 ADDED FEATURES COPY_WEIGHT COPY_BIAS
*u8 OUTRIGHT
i32 width vocab stride size rank
"""
SEEK: dict[str, Any] = {"LONGEST": LONGEST, "MATCHES": MATCHES, "NONE": NONE, "BLOCK": 1024}
CORRECT = {"SURE": SURE, "NONE": NONE, "RANKS": 256, "BLOCK": 1024}
KERNELS = [
    (chain.seek_rows, SEEK | {"FIRST": True}), (chain.seek_rows, SEEK | {"FIRST": False}),
    (chain.correct_rows, CORRECT | {"HAS_TABLE": True}), (chain.correct_rows, CORRECT | {"HAS_TABLE": False}),
]  # fmt: skip


@compiled
@pytest.mark.parametrize("capability", [90, 100])
@pytest.mark.parametrize(("kernel", "constants"), KERNELS)
def test_it_compiles(kernel, constants, capability, record_property):
    compiles(kernel, TYPES, constants, capability, record_property)
