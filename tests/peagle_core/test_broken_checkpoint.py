"""Broken checkpoints: one sentence that names the file and the tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from head_files import Tensors, remove, shard, write_head
from safetensors.torch import load_file, save_file
from tiny import tiny_drafter

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.errors import InputError


def set_value(name: str, value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[3] = value

    return change


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
