"""Every attention backend against softmax written as a loop: outputs and gradients, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import chains, stream, streams
from qkv import assert_same, output_and_gradients, random_qkv
from torch import Tensor

from peagle_core.attention import make_attention
from peagle_core.attention.dense import DenseAttention
from peagle_core.attention.torch import TorchAttention
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.mask import dense_mask


def loop_attention(elements: Elements, doc_ids: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k / sqrt(D)) v, row by row and head by head over the keys the rule allows."""
    allowed = dense_mask(elements, doc_ids)
    group = q.shape[1] // k.shape[1]
    rows = []
    for i in range(len(elements)):
        seen = allowed[i].nonzero().squeeze(-1)
        heads = []
        for h in range(q.shape[1]):
            scores = k[seen, h // group] @ q[i, h] / math.sqrt(q.shape[-1])
            heads.append(scores.softmax(-1) @ v[seen, h // group])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


chain_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5)
head_counts = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)])


@settings(max_examples=25)
@given(streams(max_documents=3, max_size=7), chain_lengths, head_counts, st.integers(0, 99))
def test_dense_is_the_loop(packed, lengths, heads, seed):
    elements = chains(packed[1], lengths)
    assume(len(elements))
    qkv = random_qkv(elements, *heads, 6, seed)
    expected = output_and_gradients(lambda *x: loop_attention(elements, packed[1], *x), qkv)
    assert_same(output_and_gradients(DenseAttention(elements, packed[1]), qkv), expected)


@settings(max_examples=120)
@given(streams(max_documents=5, max_size=20), chain_lengths, head_counts, st.integers(1, 40), st.integers(0, 99))
def test_torch_is_dense_for_every_chunk_size(packed, lengths, heads, chunk_rows, seed):
    # chunk_rows from 1 on: smaller than a chain, equal to one, larger than everything.
    elements = chains(packed[1], lengths)
    qkv = random_qkv(elements, *heads, 4, seed)
    expected = output_and_gradients(DenseAttention(elements, packed[1]), qkv)
    assert_same(output_and_gradients(TorchAttention(elements, packed[1], chunk_rows), qkv), expected)


@pytest.mark.parametrize("chunk_rows", [1, 3, 8, 256])
def test_a_chunk_never_costs_more_than_its_own_document(chunk_rows):
    # What the backend exists for: scores in N * S of one document, not N * N and not over the packed row.
    _, doc_ids = stream("A" * 40, "A" * 40)
    elements = chains(doc_ids, [4])
    attention = TorchAttention(elements, doc_ids, chunk_rows)
    rows = [chunk.stop - chunk.start for chunk in attention.chunks]
    assert sum(rows) == len(elements)
    assert max(rows) <= max(chunk_rows, 4), "a chunk is at most chunk_rows or one chain"
    for chunk in attention.chunks:
        assert chunk.context_stop - chunk.context_start <= 39, "at most the slots of one document"


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_padding_makes_no_nan(backend):
    # Rows on padding see nothing at all: whatever they give, neither they nor their gradients may be NaN.
    _, doc_ids = stream("...", "AAAA", "..", "AA", "....")
    elements = Elements(torch.arange(len(doc_ids)), torch.zeros(len(doc_ids), dtype=torch.int64))
    qkv = random_qkv(elements, 4, 2, 8, 0)
    for tensor in output_and_gradients(make_attention(elements, doc_ids, backend), qkv):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("backend", ["dense", "torch"])
@pytest.mark.parametrize("documents", [(), ("A",), ("AA",), ("..",), ("A", "A", "AA")])
def test_empty_and_shortest_streams(backend, documents):
    _, doc_ids = stream(*documents)
    elements = chains(doc_ids, [1, 3])
    qkv = random_qkv(elements, 2, 1, 4, 0)
    output = make_attention(elements, doc_ids, backend)(*qkv)
    assert output.shape == (len(elements), 2, 4)
    assert torch.isfinite(output).all()


def test_an_unknown_backend_is_refused_and_an_old_name_known():
    _, doc_ids = stream("AA")
    assert isinstance(make_attention(chains(doc_ids, [1]), doc_ids, "sdpa"), TorchAttention)
    with pytest.raises(InputError, match=r"unknown attention backend 'flex'.*dense, torch"):
        make_attention(chains(doc_ids, [1]), doc_ids, "flex")
