"""Drafter checkpoints: a directory with config.json and safetensors, bare tensor names, as vLLM loads it.

`read_tensors` is the one loader: peagle_core, the trainer and the SGLang model all call it. What it takes and refuses
is `peagle_core.tensors`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from peagle_core.atomic import new_file
from peagle_core.config import PEagleConfig
from peagle_core.config_formats import refuse_experiments, write_flat_config
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.target import Ends
from peagle_core.tensors import (
    SHARED,
    TensorCheck,
    bare_name,
    checked_tensors,
    expected_shapes,
    stored_tensors,
    weight_files,
)


def read_tensors(directory: str | Path, config: PEagleConfig) -> dict[str, Tensor]:
    """Read and check all drafter tensors of a checkpoint directory, by bare name; see `collect_tensors`.

    Raises InputError, also for an unreadable file.
    """
    return dict(checked_tensors(stored_tensors(weight_files(Path(directory))), config, directory))


def collect_tensors(named: Iterable[tuple[str, Tensor]], config: PEagleConfig, where: str | Path) -> dict[str, Tensor]:
    """Check drafter tensors and return them by bare name.

    `embed_tokens.weight` and `lm_head.weight` may be absent (shared with the target), `d2t` only when the vocabularies
    are equal. where: the checkpoint, for messages.
    Raises InputError for a missing, unknown, misshapen, duplicate or non-finite tensor.
    """
    return dict(checked_tensors(((where, name, tensor) for name, tensor in named), config, where))


def is_complete(names: Iterable[str], config: PEagleConfig) -> bool:
    """Return whether tensors of these names make up a whole drafter, as `collect_tensors` wants it."""
    check = TensorCheck(config, "")
    check.seen = {bare_name(name) for name in names}
    return not check.missing()


def collect_part(named: Iterable[tuple[str, Tensor]], config: PEagleConfig, where: str) -> dict[str, Tensor]:
    """Check some of the drafter tensors and return them by bare name; other names are passed over.

    where: what brings them, for messages. Raises InputError for a misshapen or non-finite tensor.
    """
    check = TensorCheck(config, where)
    tensors = {name: check.take(where, name, tensor) for name, tensor in named if name in check.expected}
    problem = check.d2t_problem()
    if problem:
        raise InputError(problem)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def load_drafter(directory: str | Path, dtype: torch.dtype | None = None, target: Ends | None = None) -> PEagleDrafter:
    """Load any P-EAGLE head.

    dtype: of the parameters, default as stored. target: a transformers causal LM whose embedding and head stand in
    where the checkpoint has none. Raises InputError, see `read_tensors`.
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


def save_drafter(
    drafter: PEagleDrafter, directory: str | Path, dtype: torch.dtype = torch.bfloat16, embedding: bool = True
) -> None:
    """Write config.json and model.safetensors (parameters in `dtype`) that vLLM's and our loader take.

    embedding: False leaves it out, where it is the target's own: engines and `load_drafter` take it from there. The
    weights appear under their name only when complete, the config last. Raises InputError for a hidden-state
    design other than P-EAGLE's.
    """
    config, directory = drafter.config, Path(directory)
    refuse_experiments(config)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in drafter.named_parameters()}
    if not embedding:
        del tensors["embed_tokens.weight"]
    if config.autoregressive:
        # The norm before attention of deeper layers: `input_layernorm` for vLLM, `hidden_norm` for SGLang's EAGLE3.
        for i in range(1, config.num_hidden_layers):
            tensors[f"layers.{i}.hidden_norm.weight"] = tensors[f"layers.{i}.input_layernorm.weight"].clone()
    if config.draft_vocab_size != config.vocab_size:
        tensors["d2t"] = drafter.d2t.cpu()
    with new_file(directory / "model.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    write_flat_config(config, directory, str(dtype).removeprefix("torch."))
