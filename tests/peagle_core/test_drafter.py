"""The drafter against a naive twin, against transformers' own layers, and against plain EAGLE-3 at K = 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from layouts import chains, stream
from naive_drafter import Row, naive_logits
from rules import sees
from tiny import random_batch, tiny_config, tiny_drafter
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from variants import LLAMA3, VARIANTS

from peagle_core.attention import make_attention
from peagle_core.config_formats import flat_config_dict
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.mask import dense_mask
from peagle_core.training import Batch, forward_elements, loss_and_backward


def numpy_weights(drafter: PEagleDrafter) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy() for name, tensor in drafter.state_dict().items()}


def rows_of(elements: Elements, batch: Batch) -> list[Row]:
    """What each element reads, by docs/elements.md: x_{a+1}, g_a at depth 0, the mask at any other depth."""
    starts = {doc: batch.doc_ids.tolist().index(doc) for doc in batch.doc_ids.tolist()}
    rows: list[Row] = []
    for a, d in zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True):
        position = a + d - starts[int(batch.doc_ids[a])]
        rows.append((int(batch.input_ids[a + 1]), batch.aux[a].numpy(), position) if d == 0 else (-1, None, position))
    return rows


def visible(elements: Elements, doc_ids: Tensor) -> list[list[int]]:
    table = list(zip(elements.anchor.tolist(), elements.depth.tolist(), strict=True))
    return [[j for j, key in enumerate(table) if sees(query, key, doc_ids.tolist())] for query in table]


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_is_the_naive_twin(name):
    config = tiny_config(**VARIANTS[name])
    drafter = tiny_drafter(config, seed=3)
    loss_mask, doc_ids = stream("uAAAAAA", "AAAA")
    batch, _ = random_batch(config, loss_mask, doc_ids)
    elements = chains(doc_ids, [3, 1, 2])
    with torch.no_grad():
        logits = drafter.logits(forward_elements(drafter, batch, elements))
    raw = flat_config_dict(config)
    expected = naive_logits(numpy_weights(drafter), raw, rows_of(elements, batch), visible(elements, doc_ids))
    assert logits.shape == (len(elements), config.draft_vocab_size)
    # The rotary tables are float32 on purpose; everything else is float64.
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["norm_before_residual", "llama3_rope", "linear_rope"])
def test_conventions_without_weights_of_their_own_are_not_ignored(name):
    # The twin would agree just as well if both sides dropped the option.
    loss_mask, doc_ids = stream("A" * 24)
    outputs = []
    for changes in ({}, VARIANTS[name]):
        config = tiny_config(**changes)
        batch, _ = random_batch(config, loss_mask, doc_ids)
        with torch.no_grad():
            outputs.append(forward_elements(tiny_drafter(config), batch, chains(doc_ids, [2])))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-2


@pytest.mark.parametrize("qk_norm", [False, True])
def test_layers_after_the_first_are_transformers_own(qk_norm):
    config = tiny_config(
        num_hidden_layers=3, qk_norm=qk_norm, head_dim=10, num_attention_heads=4, num_key_value_heads=2,
        attention_bias=not qk_norm, rope_parameters=LLAMA3,
    )  # fmt: skip
    drafter = tiny_drafter(config, dtype=torch.float32)
    shape = {
        name: getattr(config, name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
                     "rms_norm_eps", "attention_bias", "max_position_embeddings")
    }  # fmt: skip
    kind, layer_class = (Qwen3Config, Qwen3DecoderLayer) if qk_norm else (LlamaConfig, LlamaDecoderLayer)
    theirs = kind(**shape, rope_parameters=dict(LLAMA3), attn_implementation="eager")
    _, doc_ids = stream("A" * 12)
    elements = chains(doc_ids, [3, 1, 2])
    hidden = torch.randn(len(elements), config.hidden_size)
    allowed = dense_mask(elements, doc_ids)
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]
    attend = make_attention(elements, doc_ids)
    cos, sin = drafter.rotary(hidden, elements.position[None])
    for i in (1, 2):
        layer = layer_class(theirs, layer_idx=i)
        layer.load_state_dict(drafter.layers[i].state_dict(), strict=True)
        with torch.no_grad():
            output = layer(hidden[None], attention_mask=additive, position_embeddings=(cos, sin))
            expected = (output[0] if isinstance(output, tuple) else output).view_as(hidden)
            ours = drafter.layers[i](None, hidden, cos[0], sin[0], attend)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def eagle3_step(drafter: PEagleDrafter, tokens: list[int], states: np.ndarray) -> np.ndarray:
    """Plain EAGLE-3: shifted tokens beside the states they follow, one causal pass, no mask row anywhere."""
    rows: list[Row] = [(token, state, i) for i, (token, state) in enumerate(zip(tokens[1:], states, strict=False))]
    causal = [list(range(i + 1)) for i in range(len(rows))]
    weights = {name: t for name, t in numpy_weights(drafter).items() if name != "mask_hidden"}
    unused = np.full(drafter.config.fused_size, np.nan)
    return naive_logits({**weights, "mask_hidden": unused}, flat_config_dict(drafter.config), rows, causal)


def test_one_depth_is_the_plain_eagle3_step():
    config = tiny_config(num_depths=1)
    drafter = tiny_drafter(config)
    loss_mask, doc_ids = stream("A" * 11)
    batch, head = random_batch(config, loss_mask, doc_ids)
    elements = chains(doc_ids, [1])
    with torch.no_grad():
        logits = drafter.logits(forward_elements(drafter, batch, elements))
    expected = eagle3_step(drafter, batch.input_ids.tolist(), batch.aux.numpy())
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-4)
    loss_and_backward(drafter, batch, elements, target_head=head)
    # mask_hidden and the mask token's embedding learn from depth >= 1 alone.
    assert drafter.mask_hidden.grad is None or not drafter.mask_hidden.grad.any()
    assert config.mask_token_id not in batch.input_ids
    assert not drafter.embed_tokens.weight.grad[config.mask_token_id].any()
    assert drafter.fc.weight.grad.abs().sum() > 0


def test_deeper_rows_do_train_mask_hidden():
    config = tiny_config()
    drafter = tiny_drafter(config)
    loss_mask, doc_ids = stream("A" * 11)
    batch, head = random_batch(config, loss_mask, doc_ids)
    loss_and_backward(drafter, batch, chains(doc_ids, [2]), target_head=head)
    assert drafter.mask_hidden.grad.abs().sum() > 0
    assert drafter.embed_tokens.weight.grad[config.mask_token_id].any()


def test_every_parameter_learns():
    config = tiny_config(**VARIANTS["everything"])
    drafter = tiny_drafter(config)
    loss_mask, doc_ids = stream("A" * 20)
    batch, head = random_batch(config, loss_mask, doc_ids)
    loss_and_backward(drafter, batch, chains(doc_ids, [3]), target_head=head)
    idle = [n for n, p in drafter.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_target_ids_apply_the_offset_table():
    drafter = tiny_drafter(tiny_config(draft_vocab_size=20))
    ids = drafter.target_ids(torch.arange(20))
    assert ids.tolist() == [3 * i for i in range(20)]
