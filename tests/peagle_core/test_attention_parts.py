"""Attention in parts: joined parts are the whole, and each part's backward pass is its share of the whole's."""

from __future__ import annotations

import pytest
import torch
from layouts import chains, stream
from qkv import assert_same, output_and_gradients, random_qkv
from torch import Tensor

from peagle_core.attention import parts
from peagle_core.attention.dense import DenseAttention
from peagle_core.attention.layout import make_layout
from peagle_core.attention.torch import TorchAttention


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [2, rows, 8] and an additive mask [5, 7] in which every row sees a key of either part."""
    q, k, v = (torch.randn(2, rows, 8, dtype=torch.float64) for rows in (5, 7, 7))
    mask = torch.zeros(5, 7, dtype=torch.float64).masked_fill_(torch.ones(5, 7).tril(3) == 0, float("-inf"))
    # Row i sees the keys up to i + 3, so every row sees keys of both parts.
    return q, k, v, mask


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(1, 2) / 8**0.5 + mask, -1) @ v


functions = pytest.mark.parametrize(
    ("part", "backward"),
    [(parts.plain_part, parts.plain_part_backward), (parts.context_part, parts.context_part_backward)],
)


@functions
@pytest.mark.parametrize("split", [1, 3])
def test_joined_parts_are_the_whole(part, backward, split):
    q, k, v, mask = inputs()
    first, second = slice(0, split), slice(split, 7)
    out, lse = parts.join(*(part(q, k[:, s], v[:, s], mask[:, s]) for s in (first, second)))
    torch.testing.assert_close(out, reference(q, k, v, mask), rtol=1e-12, atol=1e-12)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(reference(*leaves, mask), leaves, grad)
    shares = [backward(grad, q, k[:, s], v[:, s], out, lse, mask[:, s]) for s in (first, second)]
    torch.testing.assert_close(shares[0][0] + shares[1][0], expected[0], rtol=1e-11, atol=1e-11)
    for i in (1, 2):
        torch.testing.assert_close(torch.cat([shares[0][i], shares[1][i]], 1), expected[i], rtol=1e-11, atol=1e-11)


def test_a_row_without_keys_is_zero_and_adds_nothing():
    q, k, v, mask = inputs()
    blind = torch.full_like(mask, float("-inf"))
    out, lse = parts.plain_part(q, k, v, blind)
    assert not out.any()
    assert (lse == float("-inf")).all()
    seen = parts.plain_part(q, k, v, mask)
    for joined, alone in zip(parts.join((out, lse), seen), seen, strict=True):
        torch.testing.assert_close(joined, alone, rtol=0, atol=0)
    neither = parts.join((out, lse), (out, lse))
    assert not neither[0].any()
    for grad in parts.plain_part_backward(torch.ones_like(q), q, k, v, *neither, blind):
        assert not grad.any()


def test_without_a_flash_kernel_nothing_changes(monkeypatch):
    # What GPUs without Triton take, and CPUs should PyTorch ever rename its kernel.
    _, doc_ids = stream("A" * 30, "A" * 11)
    elements = chains(doc_ids, [6, 1, 3])
    qkv = random_qkv(elements, 4, 2, 8, seed=0)
    expected = output_and_gradients(DenseAttention(elements, doc_ids), qkv)
    assert parts._has_flash(qkv[0]), "this build of PyTorch has the kernel"
    monkeypatch.setattr(parts, "FLASH", "no_such_kernel")
    assert not parts._has_flash(qkv[0])
    assert_same(output_and_gradients(TorchAttention(elements, doc_ids, 8), qkv), expected)


def test_layout_by_hand():
    # Slots 0, 1 of one document and 3, 4 of another; chains of depth 2 at 0, 1 at 3.
    _, doc_ids = stream("AAA", "AAA")
    elements = chains(doc_ids, [3, 1, 2, 1])
    layout = make_layout(elements, doc_ids)
    assert elements.anchor.tolist() == [0, 0, 0, 1, 3, 3, 4]
    assert layout.first.tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert layout.last.tolist() == [1, 1, 1, 2, 3, 3, 4]
    assert layout.own.tolist() == [0, 1, 2, 0, 0, 1, 0]
    assert layout.context_rows is not None
    assert layout.context_rows.tolist() == [0, 3, 4, 6]
    chain_rows = elements.depth > 0
    elsewhere = make_layout(elements[chain_rows], doc_ids, slots=torch.tensor([0, 1, 3, 4]))
    assert elsewhere.last.tolist() == [1, 1, 3]
    assert elsewhere.own.tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="rows at depth 0 bring their own context"):
        make_layout(elements, doc_ids, slots=torch.tensor([0, 1, 3, 4]))
