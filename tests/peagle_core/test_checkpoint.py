"""Checkpoints: bit-equal round trips, every spelling of the tensor names, shards, and what may be left out."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from head_files import Tensors, assert_same_head, remove, shard, write_head
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import NESTED
from safetensors.torch import load_file, save_file
from tiny import random_batch, tiny_config, tiny_drafter, tiny_target
from variants import configs

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError


@settings(max_examples=40)
@given(configs(), st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
def test_round_trip_is_bit_equal(tmp_path_factory, config, dtype):
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    drafter = tiny_drafter(config)
    for parameter in drafter.parameters():  # values that need all the bits of their dtype
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64).to(dtype)
    save_drafter(drafter, first, dtype)
    loaded = load_drafter(first)
    assert_same_head(loaded, drafter)
    save_drafter(loaded, second, dtype)
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_default_is_bfloat16_and_loading_can_widen_it(tmp_path):
    drafter = tiny_drafter(dtype=torch.float32)
    save_drafter(drafter, tmp_path)
    assert load_drafter(tmp_path).fc.weight.dtype == torch.bfloat16
    wide = load_drafter(tmp_path, torch.float32)
    for (name, ours), stored in zip(drafter.named_parameters(), wide.parameters(), strict=True):
        assert stored.dtype == torch.float32
        assert torch.equal(stored, ours.bfloat16().float()), name
    assert wide.rotary.inv_freq.dtype == torch.float32


def test_rotary_tables_keep_float32_whatever_the_weights_are(tmp_path):
    drafter = tiny_drafter(dtype=torch.bfloat16)
    save_drafter(drafter, tmp_path)
    loaded = load_drafter(tmp_path)
    assert loaded.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(loaded.rotary.inv_freq, PEagleDrafter(drafter.config).rotary.inv_freq)


def test_names_and_shapes_are_vllms(tmp_path):
    # Copied from docs/checkpoint.md: H = 24, H_t = 20, I = 40, 3 query heads and 1 key/value head of width 8.
    config = tiny_config(target_hidden_size=20, draft_vocab_size=30)
    save_drafter(tiny_drafter(config), tmp_path)
    expected = {
        "fc.weight": [24, 60], "mask_hidden": [1, 1, 60], "embed_tokens.weight": [61, 24], "norm.weight": [24],
        "lm_head.weight": [30, 24], "d2t": [30], "layers.0.hidden_norm.weight": [24],
    }  # fmt: skip
    for layer, width in ((0, 48), (1, 24)):
        expected |= {
            f"layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": [24, width], "self_attn.k_proj": [8, width], "self_attn.v_proj": [8, width],
                "self_attn.o_proj": [24, 24], "mlp.gate_proj": [40, 24], "mlp.up_proj": [40, 24],
                "mlp.down_proj": [24, 40], "input_layernorm": [24], "post_attention_layernorm": [24],
            }.items()
        }  # fmt: skip
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == expected
    assert stored["d2t"].dtype == torch.int64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_optional_parts_have_their_names(tmp_path):
    for changes, names in (
        ({"norm_before_fc": True}, {"input_norm.weight"}),
        ({"fc_norm": True}, {"fc_norm.0.weight", "fc_norm.1.weight", "fc_norm.2.weight"}),
        ({"qk_norm": True}, {f"layers.{i}.self_attn.{x}_norm.weight" for i in (0, 1) for x in "qk"}),
        ({"attention_bias": True}, {f"layers.{i}.self_attn.{x}_proj.bias" for i in (0, 1) for x in "qkvo"}),
    ):
        save_drafter(tiny_drafter(), tmp_path / "plain")
        save_drafter(tiny_drafter(tiny_config(**changes)), tmp_path / "more")
        plain, more = (set(load_file(tmp_path / d / "model.safetensors")) for d in ("plain", "more"))
        assert more - plain == names


def rename(tensors: Tensors, new_name: Callable[[str], str]) -> None:
    for name in list(tensors):
        tensors[new_name(name)] = tensors.pop(name)


def with_copies(tensors: Tensors) -> None:
    tensors["t2d"] = torch.zeros(61, dtype=torch.bool)
    tensors["verifier_lm_head.weight"] = torch.ones(61, 24)
    tensors["verifier_norm.weight"] = torch.ones(24)
    tensors["layers.1.hidden_norm.weight"] = torch.ones(24)


SPELLINGS: dict[str, Callable[[Tensors], object]] = {
    "midlayer": lambda t: rename(t, lambda n: n.replace("layers.0.", "midlayer.")),
    "model prefix": lambda t: rename(t, lambda n: n if n.startswith(("lm_head", "d2t")) else f"model.{n}"),
    "model.midlayer": lambda t: rename(t, lambda n: "model." + n.replace("layers.0.", "midlayer.")),
    "flat mask_hidden": lambda t: t.update(mask_hidden=t["mask_hidden"].reshape(-1)),
    "mask_hidden as a row": lambda t: t.update(mask_hidden=t["mask_hidden"].reshape(1, -1)),
    "int32 d2t": lambda t: t.update(d2t=t["d2t"].int()),
    "idle tensors": with_copies,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_the_tensors(tmp_path, spelling):
    expected = load_drafter(write_head(tmp_path / "plain"))
    assert_same_head(load_drafter(write_head(tmp_path / "other", SPELLINGS[spelling])), expected)


def test_speculators_nested_checkpoint(tmp_path):
    expected = load_drafter(write_head(tmp_path / "flat", target_hidden_size=20))
    nested = write_head(tmp_path / "nested", with_copies, target_hidden_size=20)
    layer = NESTED["transformer_layer_config"] | {"rope_theta": 10000.0, "rms_norm_eps": 1e-5}
    proposals = NESTED["speculators_config"] | {"proposal_methods": [{"speculative_tokens": 4}], "verifier": {}}
    raw = NESTED | {"draft_vocab_size": 20, "norm_before_residual": False, "transformer_layer_config": layer,
                    "speculators_config": proposals}  # fmt: skip
    (nested / "config.json").write_text(json.dumps(raw))
    assert_same_head(load_drafter(nested), expected)


def test_sharded_checkpoints_with_and_without_an_index(tmp_path):
    expected = load_drafter(write_head(tmp_path / "whole"))
    directory = write_head(tmp_path / "sharded")
    shard(directory)
    assert_same_head(load_drafter(directory), expected)
    (directory / "model.safetensors.index.json").unlink()
    assert_same_head(load_drafter(directory), expected)


def test_embedding_and_head_may_be_the_targets(tmp_path):
    target = tiny_target()
    drafter = tiny_drafter(dtype=torch.bfloat16)
    save_drafter(drafter, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    remove("embed_tokens.weight", "lm_head.weight")(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_drafter(tmp_path, torch.float64, target)
    assert torch.equal(loaded.embed_tokens.weight, target.get_input_embeddings().weight)
    assert torch.equal(loaded.lm_head.weight, target.get_output_embeddings().weight)
    assert torch.equal(loaded.fc.weight, drafter.fc.weight.double())
    # A copy: training the drafter must not move the target.
    with torch.no_grad():
        loaded.embed_tokens.weight.zero_()
    assert target.get_input_embeddings().weight.any()
    with pytest.raises(InputError, match=r"no 'embed_tokens.weight' and the target's has shape \(50, 24\)"):
        load_drafter(tmp_path, None, tiny_target(vocab_size=50))


def test_a_loaded_head_computes_what_the_saved_one_did(tmp_path):
    from layouts import chains, stream

    from peagle_core.training import forward_elements

    drafter = tiny_drafter(tiny_config(fc_norm=True, draft_vocab_size=20), dtype=torch.float32)
    save_drafter(drafter, tmp_path, torch.float32)
    loss_mask, doc_ids = stream("A" * 9)
    batch, _ = random_batch(drafter.config, loss_mask, doc_ids, dtype=torch.float32)
    elements = chains(doc_ids, [3])
    with torch.no_grad():
        ours, theirs = (d.logits(forward_elements(d, batch, elements)) for d in (drafter, load_drafter(tmp_path)))
    assert torch.equal(ours, theirs)


def test_saving_over_a_checkpoint_replaces_it(tmp_path):
    save_drafter(tiny_drafter(seed=1), tmp_path, torch.float64)
    save_drafter(tiny_drafter(seed=2), tmp_path, torch.float64)
    assert_same_head(load_drafter(tmp_path), tiny_drafter(seed=2))
    assert PEagleConfig.from_pretrained(tmp_path) == tiny_config()


def test_an_eagle3_head_has_no_mask_and_the_norms_of_either_engine(tmp_path):
    # Layers >= 1 norm with `input_layernorm` in vLLM and with `hidden_norm` in SGLang's EAGLE3.
    config = tiny_config(num_hidden_layers=3, draft_vocab_size=20, mask_token_id=None)
    drafter = tiny_drafter(config, dtype=torch.float32)
    save_drafter(drafter, tmp_path, torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    assert "mask_hidden" not in stored
    for layer in (1, 2):
        norms = (stored[f"layers.{layer}.{name}.weight"] for name in ("hidden_norm", "input_layernorm"))
        assert torch.equal(*norms)
    assert_same_head(load_drafter(tmp_path), drafter)
