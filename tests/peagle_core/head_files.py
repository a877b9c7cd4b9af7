"""Write a small head's checkpoint, damage it or split it, and compare the heads that were loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_drafter
from torch import Tensor

from peagle_core.checkpoint import save_drafter
from peagle_core.drafter import PEagleDrafter

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


def shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors in two, with the index file that transformers writes; returns its weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


def remove(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: [tensors.pop(name) for name in names]
