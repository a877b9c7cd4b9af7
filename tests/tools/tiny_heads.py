"""Heads on disk in every format that exists, tiny, for the tests of convert and inspect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_drafter
from torch import Tensor

from peagle_core.checkpoint import save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.config_formats import flat_config_dict
from peagle_core.drafter import PEagleDrafter
from trainer.checkpoint.dcp_safetensors import write_tensors

Tensors = dict[str, Tensor]


def random_drafter(config: PEagleConfig, dtype: torch.dtype = torch.bfloat16) -> PEagleDrafter:
    """Values that need all the bits of their dtype."""
    drafter = tiny_drafter(config)
    for parameter in drafter.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64).to(dtype)
    return drafter


def write_flat(directory: Path, config: PEagleConfig | None = None, dtype: torch.dtype = torch.bfloat16) -> Path:
    """What save_drafter writes; a draft vocabulary unless the config says otherwise."""
    save_drafter(random_drafter(config or tiny_config(draft_vocab_size=20), dtype), directory, dtype)
    return directory


def change_tensors(directory: Path, change: Callable[[Tensors], Any]) -> Path:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return directory


def change_config(directory: Path, **changes: Any) -> Path:
    """Keys set, or removed where the value is None."""
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return directory


def rename(tensors: Tensors, new_name: Callable[[str], str]) -> None:
    for name in list(tensors):
        tensors[new_name(name)] = tensors.pop(name)


def write_aws(directory: Path, config: PEagleConfig | None = None) -> Path:
    """The plain eagle3 config of AWS's heads, none of our keys, `midlayer.` spelling, t2d, a flat mask_hidden."""
    write_flat(directory, config)
    change_config(
        directory, num_depths=None, mask_token_id=None, target_name_or_path=None, qk_norm=None, norm_before_fc=None,
        fc_norm=None, norm_before_residual=None, rope_parameters=None,
    )  # fmt: skip

    def spell(tensors: Tensors) -> None:
        tensors["mask_hidden"] = tensors["mask_hidden"].reshape(-1)
        if "d2t" in tensors:
            tensors["t2d"] = torch.zeros(61, dtype=torch.bool)
            tensors["t2d"][torch.arange(len(tensors["d2t"])) + tensors["d2t"]] = True
        rename(tensors, lambda name: name.replace("layers.0.", "midlayer."))

    return change_tensors(directory, spell)


def write_nemo(directory: Path) -> Path:
    """`model.` prefixes, NeMo's class name and training keys, the target's model_type, no aux ids."""
    write_flat(directory)
    change_config(
        directory, architectures=["LlamaEagle3DraftModel"], model_type="qwen3", parallel_drafting=True,
        ptd_token_id=None, eagle_config=None, down_sample_ratio=0.8, qk_norm=None, target_name_or_path=None,
    )  # fmt: skip
    top = ("lm_head", "d2t", "mask_hidden")
    return change_tensors(directory, lambda t: rename(t, lambda n: n if n.startswith(top) else f"model.{n}"))


def write_training_checkpoint(directory: Path, config: PEagleConfig | None = None) -> Path:
    """What trainer.checkpoint.checkpoints writes, as far as a reader of the drafter looks at it."""
    drafter = random_drafter(config or tiny_config(draft_vocab_size=20), torch.float32)
    directory.mkdir(parents=True)
    write_tensors(directory, {**drafter.state_dict(), "fc.weight:exp_avg": torch.zeros(2)})
    contract = {"drafter": flat_config_dict(drafter.config, "float32"), "retention": 0.8}
    files = {file.name: file.stat().st_size for file in directory.iterdir()}
    (directory / "state.json").write_text(json.dumps({"step": 3, "contract": contract, "files": files}))
    return directory


def same_files(a: Path, b: Path) -> bool:
    """Two directories with the same files, byte for byte."""
    names = [sorted(p.name for p in directory.iterdir()) for directory in (a, b)]
    return names[0] == names[1] and all((a / name).read_bytes() == (b / name).read_bytes() for name in names[0])
