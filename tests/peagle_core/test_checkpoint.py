"""Checkpoints: bit-equal round trips, every spelling of the tensor names, and one sentence for everything broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_configs import NESTED
from safetensors.torch import load_file, save_file
from tiny import random_batch, tiny_config, tiny_drafter, tiny_target
from torch import Tensor
from variants import configs

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError

Tensors = dict[str, Tensor]


def assert_same_head(a: PEagleDrafter, b: PEagleDrafter) -> None:
    """Same config, names, dtypes and bits."""
    assert a.config == b.config
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype, name
        assert torch.equal(tensor, states[1][name]), name


def write_head(directory: Path, change: Callable[[Tensors], object] | None = None, **config) -> Path:
    """A good checkpoint with a draft vocabulary, after `change` has had its way with the tensors."""
    drafter = tiny_drafter(tiny_config(draft_vocab_size=20, **config), dtype=torch.bfloat16)
    save_drafter(drafter, directory)
    if change is not None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
    return directory


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


def shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors in two, with the index file that transformers writes; returns its weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def test_sharded_checkpoints_with_and_without_an_index(tmp_path):
    expected = load_drafter(write_head(tmp_path / "whole"))
    directory = write_head(tmp_path / "sharded")
    shard(directory)
    assert_same_head(load_drafter(directory), expected)
    (directory / "model.safetensors.index.json").unlink()
    assert_same_head(load_drafter(directory), expected)


def set_value(name: str, value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = value

    return change


def remove(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in names]


Q_PROJ = "layers.0.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (remove("norm.weight"), r"tensor 'norm.weight' is missing; expected shape \(24,\)"),
    "missing mask_hidden": (remove("mask_hidden"), "tensor 'mask_hidden' is missing"),
    "missing d2t": (remove("d2t"), r"tensor 'd2t' is missing; expected shape \(20,\)"),
    "several missing": (remove("fc.weight", "norm.weight"), "tensor 'fc.weight' is missing and 1 more"),
    "shape": (
        lambda t: t.update({Q_PROJ: t[Q_PROJ][:, :24].contiguous()}),
        rf"model.safetensors: tensor '{Q_PROJ}' has shape \(24, 24\), expected \(24, 48\)",
    ),
    "mask_hidden length": (
        lambda t: t.update(mask_hidden=t["mask_hidden"][..., :24].contiguous()),
        r"tensor 'mask_hidden' has shape \(1, 1, 24\), expected \(1, 1, 72\)",
    ),
    "another hidden size": (lambda t: t.update({"norm.weight": torch.ones(32)}), r"'norm.weight' has shape \(32,\)"),
    "unknown": (lambda t: t.update(extra=torch.ones(2)), "model.safetensors: tensor 'extra' belongs to no"),
    "too many layers": (
        lambda t: t.update({"layers.2.mlp.up_proj.weight": torch.ones(40, 24)}),
        "tensor 'layers.2.mlp.up_proj.weight' belongs to no",
    ),
    "too few layers": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("layers.1.")],
        "tensor 'layers.1.input_layernorm.weight' is missing and 8 more",
    ),
    "NaN": (set_value("fc.weight", float("nan")), "tensor 'fc.weight' has values that are not finite"),
    "infinity": (set_value("mask_hidden", float("inf")), "tensor 'mask_hidden' has values that are not finite"),
    "integers": (
        lambda t: t.update({"fc.weight": t["fc.weight"].to(torch.int8)}),
        "tensor 'fc.weight' has dtype torch.int8, expected floating point",
    ),
    "twice": (
        lambda t: t.update({"model.norm.weight": t["norm.weight"].clone()}),
        "tensor '(model.)?norm.weight' is there twice",
    ),
    "midlayer twice": (
        lambda t: t.update({Q_PROJ.replace("layers.0", "midlayer"): t[Q_PROJ].clone()}),
        "q_proj.weight' is there twice",
    ),
    "d2t beyond": (lambda t: t["d2t"].fill_(50), "'d2t' is no one-to-one map into the target vocabulary of 61"),
    "d2t below": (lambda t: t["d2t"].fill_(-1), "'d2t' is no one-to-one map"),
    "d2t doubled": (lambda t: t["d2t"].copy_(torch.arange(20).neg()), "'d2t' is no one-to-one map"),
    "d2t floats": (lambda t: t.update(d2t=t["d2t"].float()), "tensor 'd2t' has dtype torch.float32, expected int64"),
    "d2t length": (lambda t: t.update(d2t=t["d2t"][:19].contiguous()), r"'d2t' has shape \(19,\), expected \(20,\)"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_damage_is_one_sentence_that_names_place_and_tensor(tmp_path, damage):
    change, message = BROKEN[damage]
    directory = write_head(tmp_path, change)
    with pytest.raises(InputError, match=message) as error:
        load_drafter(directory)
    assert str(error.value).startswith(str(directory))
    assert "\n" not in str(error.value)


def test_every_tensor_but_the_shared_ones_is_needed(tmp_path):
    names = list(load_file(write_head(tmp_path / "good") / "model.safetensors"))
    for number, name in enumerate(names):
        shared = name in ("embed_tokens.weight", "lm_head.weight")
        message = f"no '{name}' of its own" if shared else f"tensor '{name}' is missing"
        with pytest.raises(InputError, match=message):
            load_drafter(write_head(tmp_path / str(number), remove(name)))


def test_one_to_one_means_a_full_draft_vocabulary_needs_no_map(tmp_path):
    # Equal vocabularies: any map but the identity would be lost on saving and ignored in training.
    save_drafter(tiny_drafter(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "d2t" not in tensors
    save_file(tensors | {"d2t": torch.zeros(61, dtype=torch.int64)}, tmp_path / "model.safetensors")
    assert not load_drafter(tmp_path).d2t.any()
    swap = torch.zeros(61, dtype=torch.int64)
    swap[:2] = torch.tensor([1, -1])
    save_file(tensors | {"d2t": swap}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="'d2t' permutes"):
        load_drafter(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, -20])
def test_a_truncated_file(tmp_path, keep):
    directory = write_head(tmp_path)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: unreadable safetensors file") as error:
        load_drafter(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "drafter.pt"])
def test_pickles_are_never_read(tmp_path, name):
    directory = write_head(tmp_path)
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(InputError, match=rf"no \*.safetensors file \(pickle files such as {name} are never read\)"):
        load_drafter(directory)


def test_directories_without_weights_or_config(tmp_path):
    directory = write_head(tmp_path / "head")
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*.safetensors file$"):
        load_drafter(directory)
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json: not found"):
        load_drafter(directory)
    with pytest.raises(InputError, match="no such directory"):
        load_drafter(tmp_path / "absent")


@pytest.mark.parametrize("index", ["{", "[]", '{"metadata": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}'])
def test_a_broken_shard_index(tmp_path, index):
    directory = write_head(tmp_path)
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"model.safetensors.index.json: ") as error:
        load_drafter(directory)
    assert "\n" not in str(error.value)


def test_a_missing_shard_and_a_tensor_in_two_shards(tmp_path):
    directory = write_head(tmp_path)
    where = shard(directory)
    first = directory / where["fc.weight"]
    other = next(directory / file for file in where.values() if file != first.name)
    duplicate = load_file(other) | {"fc.weight": load_file(first)["fc.weight"]}
    save_file(duplicate, other)
    with pytest.raises(InputError, match=rf"{max(first, other).name}: tensor 'fc.weight' is there twice"):
        load_drafter(directory)
    other.unlink()
    with pytest.raises(InputError, match=rf"{other.name}: unreadable safetensors file"):
        load_drafter(directory)


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
