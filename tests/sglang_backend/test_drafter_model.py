"""The drafter's network on SGLang's layers, alone: which rows its last layer works on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from byte_models import save_random_head
from safetensors.torch import load_file
from transformers import LlamaConfig

pytest.importorskip("sglang")

from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.runtime_context import get_context, get_parallel

from peagle_core.checkpoint import load_drafter
from peagle_core.draft_vocabulary import offsets
from peagle_core.told import NONE, TOKENS
from sglang_backend.kernels import chain
from sglang_backend.served_correction import correct_logits

ROWS, K, LAYERS = 14, 3, 3


def attend(q, k, v, _batch):
    """Plain causal attention over all rows, 4 query heads and 2 of keys and values."""
    q, k, v = (x.view(ROWS, -1, 16).transpose(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(0, 1).reshape(ROWS, -1)


def in_torch(model, rows: list[int]) -> None:
    """Put torch in place of SGLang's layers, which want a platform and a process group. rows: of each call, in order.

    Only the calls behind attention are noted: o_proj and the MLP of every layer.
    """

    def linear(weight):
        return lambda x: (F.linear(x, weight), None)

    def noted(call):
        return lambda x: rows.append(len(x)) or call(x)

    model.embed_tokens.forward = lambda ids, weight=model.embed_tokens.weight: F.embedding(ids, weight)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = module.forward_native
    for layer in model.layers:
        attention = layer.self_attn
        attention.attn.forward = attend
        attention.qkv_proj.forward = linear(attention.qkv_proj.weight)
        attention.o_proj.forward = noted(linear(attention.o_proj.weight))
        layer.mlp.forward = noted(torch.tanh)


@pytest.fixture
def causal_lm(tmp_path, monkeypatch):
    """A random head with a correction and a draft vocabulary."""
    from sglang_backend import drafter_model

    save_random_head(tmp_path, num_hidden_layers=LAYERS, correction_rank=4, draft_vocab_size=130)
    config = LlamaConfig.from_pretrained(tmp_path)
    config.name_or_path = str(tmp_path)
    monkeypatch.setattr(drafter_model, "HeadRope", lambda _: lambda _positions, q, k: (q, k))
    with (
        get_context().override_server_args(model_path=str(tmp_path)),
        get_parallel().override(tp_rank=0, attn_tp_rank=0),
    ):
        model = drafter_model.PEagleForCausalLM(config)
    model.load_weights(load_file(tmp_path / "model.safetensors").items())
    return model


@pytest.fixture
def model(causal_lm):
    return causal_lm.model


def test_a_correction_is_loaded_and_updated_in_place(causal_lm, tmp_path):
    """Captured graphs read it where it is; an update may bring it in a bucket of its own."""
    stored = load_file(tmp_path / "model.safetensors")
    own, w2 = causal_lm.correction, causal_lm.correction.lm_head.weight
    gate_up = [stored[f"correction.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(own.gate_up_proj.weight, torch.cat(gate_up)) and own.gate_up_proj.weight.any()
    assert torch.equal(own.embed_norm.weight, stored["correction.embed_norm.weight"])
    assert not any(parameter.requires_grad for parameter in causal_lm.correction.parameters())
    place, new = w2.data_ptr(), torch.randn_like(w2)
    causal_lm.load_weights([("correction.lm_head.weight", new)])
    assert torch.equal(causal_lm.correction.lm_head.weight, new) and w2.data_ptr() == place
    causal_lm.unknown_ids = True
    assert causal_lm.known_ids(torch.tensor([3, 10**6])).tolist() == [3, causal_lm.head.mask_token_id]


def test_an_update_of_the_draft_vocabulary_reaches_both_tables_in_place(causal_lm):
    tables = causal_lm.hot_token_id, causal_lm.draft_of
    new = torch.randperm(causal_lm.head.vocab_size)[:130].sort().values
    causal_lm.load_weights([("d2t", offsets(new))])
    assert causal_lm.hot_token_id is tables[0] and causal_lm.draft_of is tables[1]
    assert torch.equal(tables[0], new) and torch.equal(tables[1][new], torch.arange(130))
    assert (tables[1] == NONE).sum() == len(tables[1]) - 130


@torch.no_grad()
def test_what_it_adds_is_the_reference_loops(causal_lm, tmp_path):
    """Over SGLang's layers; with tokens that there are not, and one that the head's vocabulary has not."""
    stored = load_drafter(tmp_path)
    table = causal_lm.model.embed_tokens
    table.forward = lambda ids: F.embedding(ids, table.weight)  # SGLang's wants a process group
    for name, weight in stored.correction.named_parameters():
        if "proj" not in name:
            torch.nn.init.normal_(weight)
            causal_lm.load_weights([(f"correction.{name}", weight)])
    causal_lm.unknown_ids = True
    unknown, mask = 10**6, causal_lm.head.mask_token_id
    drafted, other = stored.target_ids(torch.arange(3)).tolist(), stored.config.vocab_size - 1
    all_drafted = stored.target_ids(torch.arange(stored.config.draft_vocab_size)).tolist()
    assert other not in all_drafted
    assert causal_lm.drafted_outright(torch.tensor([[drafted[2], other], [unknown, 0]])).tolist() == [
        [False, True], [True, 0 not in all_drafted]]  # fmt: skip
    for served, told in (
        ([4, NONE, NONE, NONE, 0], [4, NONE, NONE, NONE, 0]), ([9, 2, 5, drafted[2], 3], [9, 2, 5, drafted[2], 3]),
        ([9, 2, 5, other, 6], [9, 2, 5, other, 6]), ([9, 2, 5, other, 1], [9, 2, 5, other, 1]),
        ([unknown, 3, NONE, unknown, 1], [mask, 3, NONE, mask, 1]),
    ):  # fmt: skip
        normed = torch.randn(1, causal_lm.head.hidden_size)
        *recent, found, match = [torch.tensor([x]) for x in served]
        rows = causal_lm.embedded(torch.cat([*recent, found])).split(1)
        logits = stored.lm_head(normed)
        is_outright = causal_lm.correct(logits, normed, rows, found, match)
        assert is_outright.tolist() == [int(found) != NONE and int(found) not in all_drafted and int(match) > 1]
        torch.testing.assert_close(logits, stored.corrected_logits(normed, torch.tensor([told])))


@torch.no_grad()
def test_a_gpu_corrects_logits_in_one_launch(causal_lm, monkeypatch):
    """With what the kernel takes, which has the arguments of the reference. The kernel itself: test_chain_kernels."""
    calls = []
    monkeypatch.setattr(chain, "correct", lambda *case: calls.append(case) or correct_logits(*case))

    class OnGpu(torch.Tensor):
        is_cuda = True

    width, found, match = causal_lm.head.hidden_size, torch.tensor([5, 7]), torch.tensor([1, 4])
    told, logits = [torch.randn(2, width) for _ in range(TOKENS)], torch.randn(2, 130)
    expected, state = logits.clone(), torch.randn(2, width)
    outright = causal_lm.correct(expected, state, told, found, match)
    assert not calls
    assert torch.equal(causal_lm.correct(logits.as_subclass(OnGpu), state, told, found, match), outright)
    assert torch.equal(logits, expected) and len(calls) == 1


@torch.no_grad()
def test_the_last_layer_works_on_the_sampled_rows_alone(model):
    """What it gives is that of all rows; the work behind its attention is that of K rows a request."""
    torch.manual_seed(0)
    keep = torch.tensor([3, 4, 5, 9, 10, 11])
    spec_info = SimpleNamespace(
        hidden_states=torch.randn(ROWS, 192), source=torch.arange(ROWS), select_index=torch.arange(ROWS)
    )
    batch, rows = SimpleNamespace(spec_info=spec_info), []
    in_torch(model, rows)
    ids, positions = torch.arange(ROWS), torch.arange(ROWS)
    everything = model(ids, positions, batch)
    rows.clear()
    spec_info.select_index = keep
    torch.testing.assert_close(model(ids, positions, batch), everything[keep])
    assert rows == [ROWS] * 2 * (LAYERS - 1) + [len(keep)] * 2
