"""The Triton kernels under Triton's interpreter, against the dense reference in float64.

The interpreter is chosen when a kernel is defined, so this file runs itself once more in a process of its own with
TRITON_INTERPRET=1, where the kernels can meet CPU tensors; the process of the other tests never sees the variable.
"""

from __future__ import annotations

import pytest
import torch
from interpreter import INTERPRETED, interpreted, outside, run_under_the_interpreter
from layouts import chains, stream
from qkv import output_and_gradients, random_qkv
from steps import SMALL, step
from tiny import random_batch, tiny_config, tiny_drafter
from torch import Tensor

from peagle_core.attention import make_attention
from peagle_core.attention.dense import DenseAttention
from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.errors import InputError

# Documents of a packed row, and query heads, key heads, head size.
CASES = [
    (("A" * 40,), (1, 1, 16)),
    (("uAAAAAA", "..", "A" * 25, "A", "AAA"), (4, 2, 8)),
    (("uAAAAAA", "A" * 17), (3, 1, 24)),
    (("AA",), (2, 2, 16)),
    (("A" * 9, "...."), (2, 1, 16)),
]


@pytest.mark.slow
@outside
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter can")
def test_without_a_gpu_it_says_so():
    _, doc_ids = stream("AAA")
    with pytest.raises(InputError, match="'triton' needs a GPU, the elements are on cpu; choose 'torch'"):
        make_attention(chains(doc_ids, [2]), doc_ids, "triton")


def triton_attention(elements: Elements, doc_ids: Tensor, **options):
    from peagle_core.attention.triton import Blocks, TritonAttention

    small = Blocks(forward=(16, 16, 4), grad_query=(16, 16, 4), grad_context=(16, 16, 4), splits=2)
    return TritonAttention(elements, doc_ids, blocks=small, **options)


def assert_near(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


def single(qkv: list[Tensor]) -> list[Tensor]:
    return [x.detach().float().requires_grad_() for x in qkv]


@interpreted
@pytest.mark.parametrize(("documents", "heads"), CASES)
def test_output_and_gradients(documents, heads):
    _, doc_ids = stream(*documents)
    elements = chains(doc_ids, [8, 1, 3, 5])
    qkv = random_qkv(elements, *heads, seed=0)
    expected = output_and_gradients(DenseAttention(elements, doc_ids), qkv)
    assert_near(output_and_gradients(triton_attention(elements, doc_ids), single(qkv)), expected)


@interpreted
@pytest.mark.parametrize("deterministic", [False, True])
def test_chains_against_a_context_from_elsewhere(deterministic):
    _, doc_ids = stream("A" * 20, "A" * 13)
    everything = chains(doc_ids, [5, 2])
    slots, elements = everything.anchor[everything.depth == 0], everything[everything.depth > 0]
    q, k, v = random_qkv(elements, 4, 2, 16, seed=1)
    context = [torch.randn(len(slots), 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    tensors = [q, k, v, *context]
    dense = DenseAttention(elements, doc_ids, slots=slots)
    expected = output_and_gradients(lambda q, k, v, *c: dense(q, k, v, c), tensors)
    ours = triton_attention(elements, doc_ids, slots=slots, deterministic=deterministic)
    assert ours.plan.blocks.splits == (1 if deterministic else 2)
    assert_near(output_and_gradients(lambda q, k, v, *c: ours(q, k, v, c), single(tensors)), expected)


@interpreted
def test_default_block_sizes_and_an_empty_layout():
    _, doc_ids = stream("A" * 50)
    elements = chains(doc_ids, [4])
    qkv = random_qkv(elements, 2, 1, 16, seed=2)
    expected = output_and_gradients(DenseAttention(elements, doc_ids), qkv)
    assert_near(output_and_gradients(make_attention(elements, doc_ids, "triton"), single(qkv)), expected)
    _, nothing = stream("A", "..")
    empty = single(random_qkv(chains(nothing, [1]), 2, 1, 16, seed=0))
    assert output_and_gradients(make_attention(chains(nothing, [1]), nothing, "triton"), empty)[0].shape == (0, 2, 16)


@interpreted
def test_padding_rows_are_zero_without_nan():
    _, doc_ids = stream("...", "AAAA", "..", "AA", "....")
    elements = Elements(torch.arange(len(doc_ids)), torch.zeros(len(doc_ids), dtype=torch.int64))
    tensors = output_and_gradients(triton_attention(elements, doc_ids), single(random_qkv(elements, 4, 2, 16, 0)))
    assert all(torch.isfinite(x).all() for x in tensors)
    assert not tensors[0][doc_ids < 0].any()


@interpreted
def test_half_precision_is_as_near_as_its_digits():
    # float16 stands for bfloat16, which the interpreter cannot multiply: the same branches, sums in float32.
    _, doc_ids = stream("A" * 30)
    elements = chains(doc_ids, [8, 1, 3, 5])
    qkv = [x.detach().half().double().requires_grad_() for x in random_qkv(elements, 4, 2, 16, seed=3)]
    expected = output_and_gradients(DenseAttention(elements, doc_ids), qkv)
    low = [x.detach().half().requires_grad_() for x in qkv]
    for x, y in zip(output_and_gradients(triton_attention(elements, doc_ids), low), expected, strict=True):
        assert (x.double() - y).norm() < 0.002 * y.norm()


@interpreted
@pytest.mark.parametrize("mode", [{"mode": "flat"}, {"mode": "partition"}, {"mode": "stream", "chunk_rows": 20}])
def test_a_whole_step_in_every_mode(mode):
    config = tiny_config(**SMALL)
    packed = stream("uAAAAAAAAAA", "AAAAAAA", "..")
    batch, head = random_batch(config, *packed)
    elements = sample_elements(*packed, 4, 1.0)
    loss_sum, grads = step(tiny_drafter(config), batch, elements, target_head=head)
    batch, head = random_batch(config, *packed, dtype=torch.float64)
    low = type(batch)(batch.input_ids, batch.aux.float(), batch.final_hidden.float(), *packed)
    drafter = tiny_drafter(config, dtype=torch.float32)
    ours, our_grads = step(drafter, low, elements, target_head=head.float(), attention="triton", **mode)
    assert ours == pytest.approx(loss_sum, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name].double(), grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))
