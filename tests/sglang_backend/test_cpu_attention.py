"""The CPU platform's attention of one request, against transformers' own for the families it is meant for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

pytest.importorskip("sglang")

from sglang_backend.cpu.attention import attend
from sglang_backend.cpu.torch_kernels import swiglu_gpt_oss

HEADS, KV_HEADS, DIM = 4, 2, 8


def transformers_says(modeling, q, k, v, mask, scale, sinks=None, **options) -> torch.Tensor:
    module = nn.Module()
    module.num_key_value_groups, module.training, module.sinks = HEADS // KV_HEADS, False, sinks
    module.config = SimpleNamespace(attn_logit_softcapping=options.get("softcap"))
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
    batched = [x.transpose(0, 1)[None] for x in (q, k, v)]
    return modeling.eager_attention_forward(module, *batched, bias, scaling=scale, **options)[0][0]


@pytest.fixture(params=[3, 70], ids=["few rows", "many rows"])
def inputs(request) -> tuple[torch.Tensor, ...]:
    rows, keys = request.param, request.param + 6
    q, k, v = (torch.randn(n, h, DIM) * 2 for n, h in ((rows, HEADS), (keys, KV_HEADS), (keys, KV_HEADS)))
    return q, k, v, torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_capped_logits(inputs, cap):
    q, k, v, mask = inputs
    expected = transformers_says(modeling_gemma2, q, k, v, mask, 0.3, softcap=cap or None)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3, cap=cap), expected)


def test_sinks(inputs):
    q, k, v, mask = inputs
    sinks = torch.randn(HEADS) * 3
    expected = transformers_says(modeling_gpt_oss, q, k, v, mask, 0.3, sinks)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3, sinks), expected)
    assert not torch.allclose(attend(q, k, v, mask, 0.3), expected, atol=1e-2)


def test_gated_activation_of_gpt_oss():
    experts = SimpleNamespace(alpha=1.702, limit=7.0)
    x = torch.randn(5, 16) * 6
    expected = modeling_gpt_oss.GptOssExperts._apply_gate(experts, x)
    torch.testing.assert_close(swiglu_gpt_oss(x, 1.702, 7.0), expected)
