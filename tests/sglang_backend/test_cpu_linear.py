"""The CPU platform's linear layers over packed weights, and what it chooses by the machine."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from no_host_sync import NoHostSync
from torch import nn

pytest.importorskip("sglang")

from peagle_core.cpu import fast_dtype
from sglang_backend.cpu import linear


def refuse(*_arguments):
    raise AssertionError("SGLang's own was called")


@pytest.mark.parametrize("dtype", linear.packed_dtypes())
@pytest.mark.parametrize(("inputs", "outputs"), [(576, 960), (1536, 576), (48, 20)])
def test_a_row_does_not_depend_on_its_neighbours(inputs, outputs, dtype):
    layer = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
    x = torch.randn(24, inputs, dtype=dtype)
    together = linear.apply_linear(refuse, None, layer, x, layer.bias)
    torch.testing.assert_close(together, F.linear(x, layer.weight, layer.bias))
    for rows in (1, 2, 4, 6, 11):
        assert torch.equal(linear.apply_linear(refuse, None, layer, x[:rows], layer.bias), together[:rows])


def test_bfloat16_is_packed_where_the_cpu_multiplies_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(linear.torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        linear.packed_dtypes.cache_clear()
        assert (torch.bfloat16 in linear.packed_dtypes()) == has
    linear.packed_dtypes.cache_clear()


def test_one_row_keeps_its_shape():
    layer, x = nn.Linear(1536, 8, bias=False).requires_grad_(False), torch.randn(1, 1, 1536)
    assert linear.linear(layer, x, None).shape == (1, 1, 8)


def test_the_output_head():
    head, hidden = nn.Linear(64, 300, bias=False).requires_grad_(False), torch.randn(6, 64)
    torch.testing.assert_close(linear.compute_lm_head(refuse, None, hidden, head), hidden @ head.weight.T)


def test_new_weights_are_seen():
    layer, x = nn.Linear(32, 16, bias=False).requires_grad_(False), torch.randn(3, 32)
    linear.linear(layer, x, None)
    layer.weight.data.copy_(torch.randn(16, 32))  # as SGLang's loaders write
    linear.note_update(None)
    with NoHostSync():  # their first forward pass may be a decode step
        seen = linear.linear(layer, x, None)
    torch.testing.assert_close(seen, x @ layer.weight.T)
    layer.weight = nn.Parameter(torch.randn(16, 32), requires_grad=False)  # as embeddings and heads are shared
    torch.testing.assert_close(linear.linear(layer, x, None), x @ layer.weight.T)


@pytest.mark.parametrize("x", [torch.zeros(2, 8, dtype=torch.float16), torch.empty(0, 8)], ids=["float16", "no rows"])
def test_other_dtypes_and_no_rows_are_left_to_sglang(x):
    layer = nn.Linear(8, 4, bias=False, dtype=x.dtype)
    assert linear.apply_linear(lambda *_: "SGLang's", None, layer, x) == "SGLang's"


def test_the_fast_dtype():
    assert fast_dtype({"avx512_f": True, "avx512_bf16": True})[0] == "bfloat16"
    assert fast_dtype({"amx_bf16": True})[0] == "bfloat16"
    assert fast_dtype({"avx512_f": True, "avx512_bf16": False, "avx2": True})[0] == "float32"
