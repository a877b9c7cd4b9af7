"""Load the target and its tokenizer, with errors in one sentence."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.config import RunConfig
from trainer.distributed import size
from trainer.sharded_target import load_sharded
from trainer.weights import local


def load_target(config: RunConfig) -> PreTrainedModel:
    """The frozen target on the run's device, sharded under `parallel: fsdp`.

    target_dtype "auto": float32 on a CPU, as stored elsewhere.
    """
    device = torch.device(config.device)
    if config.parallel == "fsdp" and size() > 1:
        return load_sharded(lambda: _load(config), device)
    return _load(config).requires_grad_(False).eval().to(device)


def _load(config: RunConfig) -> PreTrainedModel:
    dtype = config.target_dtype
    if dtype == "auto" and config.device == "cpu":
        dtype = "float32"
    try:
        return AutoModelForCausalLM.from_pretrained(config.target, dtype=dtype)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"target {config.target!r} cannot be loaded ({first_line(error)})") from None


def load_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase | None:
    """The target's tokenizer, or None for a local target without one (tokenised data needs none)."""
    try:
        return AutoTokenizer.from_pretrained(config.target)
    except (OSError, ValueError, KeyError) as error:
        if Path(config.target).is_dir() and not any(Path(config.target).glob("*token*")):
            return None
        raise InputError(f"the tokenizer of {config.target!r} cannot be loaded ({first_line(error)})") from None


def embedding(target: PreTrainedModel) -> Tensor:
    """[V, H_t]: the target's input embedding; V may exceed what its tokenizer knows."""
    weight = target.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def weight_bytes(target: PreTrainedModel) -> int:
    """In this process."""
    return sum(local(p).nbytes for p in target.parameters())


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
