"""Drafter checkpoints: a directory with config.json and safetensors, bare tensor names, as vLLM loads it.

`read_tensors` takes every spelling that exists and refuses everything else in one sentence that names file, tensor,
expected and found shape. It is the one loader: peagle_core, the trainer and the SGLang model all call it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import refuse_experiments, write_flat_config
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError

# Tensors that trainers leave in a checkpoint and a drafter does not need.
IGNORED = ("t2d", "verifier_lm_head.weight", "verifier_norm.weight")
# Taken from the target where a checkpoint has none of its own.
SHARED = ("embed_tokens.weight", "lm_head.weight")


def bare_name(name: str) -> str:
    """`model.midlayer.x` (NeMo, EAGLE-3) -> `layers.0.x` (vLLM's plain format)."""
    name = name.removeprefix("model.")
    return "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name


def expected_shapes(config: PEagleConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a complete checkpoint, d2t included."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in PEagleDrafter(config).state_dict().items()}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sharded or not. Raises InputError where there are none."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        try:
            return sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError):
            raise InputError(f"{index}: no shard index with a 'weight_map' from tensors to files") from None
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        pickles = [p.name for p in directory.glob("*.bin")] + [p.name for p in directory.glob("*.pt")]
        hint = f" (pickle files such as {pickles[0]} are never read)" if pickles else ""
        raise InputError(f"{directory}: no *.safetensors file{hint}")
    return files


def read_tensors(directory: str | Path, config: PEagleConfig) -> dict[str, Tensor]:
    """All drafter tensors of a checkpoint directory by bare name, checked; see `collect_tensors`.

    Raises InputError, also for an unreadable file.
    """
    return _collect(_stored_tensors(Path(directory)), config, directory)


def _stored_tensors(directory: Path) -> Iterator[tuple[Path, str, Tensor]]:
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, safe_open is no mapping
                    yield path, name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: unreadable safetensors file ({error})") from None


def collect_tensors(named: Iterable[tuple[str, Tensor]], config: PEagleConfig, where: str | Path) -> dict[str, Tensor]:
    """Checked drafter tensors by bare name. `embed_tokens.weight` and `lm_head.weight` may be absent (shared with the
    target), `d2t` only when the vocabularies are equal. where: the checkpoint, for messages.

    Raises InputError for a missing, unknown, misshapen, duplicate or non-finite tensor.
    """
    return _collect(((where, name, tensor) for name, tensor in named), config, where)


def is_complete(names: Iterable[str], config: PEagleConfig) -> bool:
    """Whether tensors of these names make up a whole drafter, as `collect_tensors` wants it."""
    return not _missing({bare_name(name) for name in names}, config)


def collect_part(named: Iterable[tuple[str, Tensor]], config: PEagleConfig, where: str) -> dict[str, Tensor]:
    """Checked drafter tensors, any subset, by their bare names; other names are passed over.

    where: what brings them, for messages. Raises InputError for a misshapen or non-finite tensor.
    """
    expected = expected_shapes(config)
    tensors = {name: _check(where, name, tensor, expected[name]) for name, tensor in named if name in expected}
    _check_d2t(where, tensors.get("d2t"), config)
    return tensors


def _missing(names: set[str], config: PEagleConfig) -> list[str]:
    optional = set(SHARED) | ({"d2t"} if config.draft_vocab_size == config.vocab_size else set())
    return sorted(set(expected_shapes(config)) - names - optional)


def _collect(
    stored: Iterable[tuple[str | Path, str, Tensor]], config: PEagleConfig, where: str | Path
) -> dict[str, Tensor]:
    """stored: (file, name, tensor), so that messages name the file of a sharded checkpoint."""
    expected = expected_shapes(config)
    tensors: dict[str, Tensor] = {}
    for file, name, tensor in stored:
        bare = bare_name(name)
        if bare in IGNORED or _is_idle_copy(bare, expected):
            continue
        if bare in tensors:
            raise InputError(f"{file}: tensor {name!r} is there twice")
        tensors[bare] = _check(file, name, tensor, expected.get(bare))
    missing = _missing(set(tensors), config)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{where}: tensor {missing[0]!r} is missing{more}; expected shape {expected[missing[0]]}")
    _check_d2t(where, tensors.get("d2t"), config)
    return tensors


def _is_idle_copy(name: str, expected: dict[str, tuple[int, ...]]) -> bool:
    """vLLM's layer class carries an unused hidden_norm in layers >= 1; exporters copy it into the file."""
    return name.endswith(".hidden_norm.weight") and name not in expected


def _check(where: str | Path, name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    if shape is None:
        raise InputError(f"{where}: tensor {name!r} belongs to no P-EAGLE drafter of this config")
    if bare_name(name) == "mask_hidden" and tensor.numel() == shape[-1]:
        tensor = tensor.view(shape)
    if tuple(tensor.shape) != shape:
        raise InputError(f"{where}: tensor {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
    if bare_name(name) == "d2t":
        if tensor.dtype not in (torch.int64, torch.int32):
            raise InputError(f"{where}: tensor 'd2t' has dtype {tensor.dtype}, expected int64")
        return tensor.long()
    if not tensor.is_floating_point():
        raise InputError(f"{where}: tensor {name!r} has dtype {tensor.dtype}, expected floating point")
    if not torch.isfinite(tensor.float()).all():
        raise InputError(f"{where}: tensor {name!r} has values that are not finite")
    return tensor


def _check_d2t(where: str | Path, d2t: Tensor | None, config: PEagleConfig) -> None:
    if d2t is None:
        return
    ids = torch.arange(len(d2t)) + d2t.cpu()
    if config.draft_vocab_size == config.vocab_size and d2t.any():
        raise InputError(f"{where}: 'd2t' permutes a draft vocabulary that is as large as the target's")
    if ids.min() < 0 or ids.max() >= config.vocab_size or len(ids.unique()) != len(ids):
        raise InputError(f"{where}: 'd2t' is no one-to-one map into the target vocabulary of {config.vocab_size}")


def load_drafter(
    directory: str | Path, dtype: torch.dtype | None = None, target: PreTrainedModel | None = None
) -> PEagleDrafter:
    """Load any P-EAGLE head. dtype: of the parameters, default as stored. target: a transformers causal LM whose
    embedding and head stand in where the checkpoint has none. Raises InputError, see `read_tensors`.
    """
    config = PEagleConfig.from_pretrained(directory)
    tensors = read_tensors(directory, config)
    for name in SHARED:
        if name in tensors:
            continue
        if target is None:
            raise InputError(f"{directory}: has no {name!r} of its own, so it can only be loaded beside its target")
        source: Any = target.get_input_embeddings() if name.startswith("embed") else target.get_output_embeddings()
        tensors[name] = source.weight.detach()
        if tuple(tensors[name].shape) != expected_shapes(config)[name]:
            raise InputError(f"{directory}: has no {name!r} and the target's has shape {tuple(tensors[name].shape)}")
    dtype = dtype or tensors["fc.weight"].dtype
    drafter = PEagleDrafter(config)
    # Only parameters: the rotary tables stay in float32.
    for parameter in drafter.parameters():
        parameter.data = parameter.data.to(dtype)
    drafter.load_state_dict({"d2t": drafter.d2t, **tensors})
    return drafter


def save_drafter(drafter: PEagleDrafter, directory: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json and model.safetensors (parameters in `dtype`) that vLLM's and our loader take.

    The weights appear under their name only when complete, the config last. Raises InputError for a hidden-state
    design other than P-EAGLE's.
    """
    config, directory = drafter.config, Path(directory)
    refuse_experiments(config)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in drafter.named_parameters()}
    if config.draft_vocab_size != config.vocab_size:
        tensors["d2t"] = drafter.d2t.cpu()
    partial = directory / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, directory / "model.safetensors")
    write_flat_config(config, directory, str(dtype).removeprefix("torch."))
