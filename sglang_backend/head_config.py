"""Show every P-EAGLE head to SGLang in the one spelling it understands.

SGLang reads a drafter's config in two places: transformers' config loader and its own ModelConfig. Both are hooked for
heads under PEAGLE: the first builds a flat config out of speculators' nested one, the second points the
architecture at our model class and writes sizes and aux layer ids where, and how, SGLang looks for them. A third hook
reads the config before SGLang does, so that a broken one is refused in our words.
"""

from __future__ import annotations

import functools
from pathlib import Path

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import (
    DEFAULT_SPECULATIVE_TOKENS,
    flat_config_dict,
    load_config_dict,
    sglang_aux_layer_ids,
)
from peagle_core.errors import InputError, first_line
from peagle_core.serve_command import sglang_arguments

ARCHITECTURE = "PEagleForCausalLM"


@functools.cache
def head_directory(path: str) -> Path:
    """A head given as a directory, or by its name on the Hugging Face hub. Raises InputError when it is neither."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise InputError(
            f"{path}: no such directory, nor a model on the Hugging Face hub ({first_line(error)})"
        ) from None


def check_head(algorithm: str | None, head: str | None, *_: object, **__: object) -> None:
    """BEFORE SGLang's first look at the drafter's config."""
    if algorithm is not None and algorithm.upper() == "PEAGLE" and head is not None:
        config = PEagleConfig.from_pretrained(head_directory(head))
        if config.autoregressive:
            tokens = config.num_depths or DEFAULT_SPECULATIVE_TOKENS
            flags = " ".join(sglang_arguments(head, tokens, autoregressive=True))
            raise InputError(f"{head}: is an EAGLE-3 head (parallel_drafting is false): serve it with {flags}")


def load_nested_config(get_config, model: str, *args, **kwargs):
    """AROUND transformers' config loading: a nested speculators config has no model_type of its own."""
    try:
        nested = "transformer_layer_config" in load_config_dict(Path(model))
    except InputError:
        nested = False
    if not nested:
        return get_config(model, *args, **kwargs)
    from transformers import AutoConfig

    config = PEagleConfig.from_pretrained(model)
    flat = AutoConfig.for_model(**flat_config_dict(config))
    flat.name_or_path = str(model)
    return flat


def normalise(_result, model_config) -> None:
    """AFTER ModelConfig._config_draft_model: under PEAGLE, whatever a head calls itself, it is ours."""
    if not model_config.is_draft_model or model_config.speculative_algorithm != "PEAGLE":
        return
    from sglang.srt.models.registry import ModelRegistry

    from sglang_backend.drafter_model import PEagleForCausalLM

    ModelRegistry.models[ARCHITECTURE] = PEagleForCausalLM
    config = PEagleConfig.from_pretrained(head_directory(model_config.model_path))
    hf_config = model_config.hf_config
    hf_config.architectures = [ARCHITECTURE]
    hf_config.draft_vocab_size, hf_config.target_hidden_size = config.draft_vocab_size, config.target_hidden_size
    hf_config.eagle_config = {"use_aux_hidden_state": True}
    if config.aux_layer_ids is not None:
        ids = sglang_aux_layer_ids(config.aux_layer_ids)
        hf_config.eagle_config["eagle_aux_hidden_state_layer_ids"] = ids


def install() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    alias = "sglang.srt.arg_groups.speculative_hook._resolve_speculative_algorithm_alias"
    HookRegistry.register(alias, check_head, HookType.BEFORE)
    HookRegistry.register("sglang.srt.utils.hf_transformers_utils.get_config", load_nested_config, HookType.AROUND)
    HookRegistry.register("sglang.srt.configs.model_config.ModelConfig._config_draft_model", normalise, HookType.AFTER)
