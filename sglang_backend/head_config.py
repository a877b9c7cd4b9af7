"""Show every P-EAGLE head to SGLang in the one spelling it understands.

SGLang reads a drafter's config in two places: transformers' config loader and its own ModelConfig. Both are hooked for
heads under PEAGLE: the first builds a flat config out of speculators' nested one, the second keeps what is said of the
target (overrides, a shorter context) away from the head, points the architecture at our model class and writes sizes
and aux layer ids where, and how, SGLang looks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import flat_config_dict, load_config_dict, sglang_aux_layer_ids
from peagle_core.errors import InputError
from peagle_core.head_directory import head_directory
from sglang_backend import NAME

ARCHITECTURE = "PEagleForCausalLM"


def without_overrides(init: Callable, model_config, *args, **kwargs) -> None:
    """Keep what is meant for the target's config away from a head's, AROUND ModelConfig.__init__.

    `--json-model-override-args` and `--model-config-parser` speak of the target; SGLang applies them to both.
    """
    if kwargs.get("is_draft_model") and kwargs.get("speculative_algorithm") == NAME:
        kwargs |= {"model_override_args": "{}", "model_config_parser": "hf"}
    init(model_config, *args, **kwargs)


def keep_target_context(derive: Callable, model_config, context_length: int | None) -> None:
    """Serve a head as far as its target goes, AROUND ModelConfig._derive_context_length.

    SGLang refuses a drafter whose config names a shorter context. `server_args` has warned of it.
    """
    if _is_head(model_config) and context_length is not None:
        model_config.context_len = model_config.hf_config.context_len = context_length
    else:
        derive(model_config, context_length)


def load_nested_config(get_config, model: str, *args, **kwargs):
    """Flatten a nested speculators config, which has no model_type of its own, AROUND get_config."""
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
    """Make a head ours, whatever it calls itself, AFTER ModelConfig._config_draft_model."""
    if not _is_head(model_config):
        return
    from sglang.srt.models.registry import ModelRegistry

    from sglang_backend.drafter_model import PEagleForCausalLM

    ModelRegistry.models[ARCHITECTURE] = PEagleForCausalLM
    config = PEagleConfig.from_pretrained(head_directory(model_config.model_path))
    model_config.model_is_mrope = False  # whatever its rope says of images: a head's positions are those of text
    hf_config = model_config.hf_config
    hf_config.architectures = [ARCHITECTURE]
    hf_config.draft_vocab_size, hf_config.target_hidden_size = config.draft_vocab_size, config.target_hidden_size
    hf_config.eagle_config = {"use_aux_hidden_state": True}
    if config.aux_layer_ids is not None:
        ids = sglang_aux_layer_ids(config.aux_layer_ids)
        hf_config.eagle_config["eagle_aux_hidden_state_layer_ids"] = ids


def _is_head(model_config) -> bool:
    return model_config.is_draft_model and model_config.speculative_algorithm == NAME
