"""Show every P-EAGLE head to SGLang in the one spelling it understands.

SGLang reads a drafter's config in two places: transformers' config loader and its own ModelConfig. Both are hooked for
heads under PEAGLE: the first builds a flat config out of speculators' nested one, the second points the
architecture at our model class and writes sizes and aux layer ids where, and how, SGLang looks for them. A third hook
reads the config before SGLang does, so that a broken one is refused in our words.
"""

from __future__ import annotations

from pathlib import Path

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import (
    DEFAULT_SPECULATIVE_TOKENS,
    flat_config_dict,
    load_config_dict,
    sglang_aux_layer_ids,
)
from peagle_core.errors import InputError
from peagle_core.serve_command import sglang_arguments
from sglang_backend import NAME
from sglang_backend.head_directory import head_directory

ARCHITECTURE = "PEagleForCausalLM"


def check_head(
    speculative_algorithm: str | None, speculative_draft_model_path: str | None, *_: object, **__: object
) -> None:
    """Refuse a broken head, or an EAGLE-3 one, BEFORE _resolve_speculative_algorithm_alias looks at its config."""
    algorithm, head = speculative_algorithm, speculative_draft_model_path
    if algorithm is not None and algorithm.upper() == NAME and head is not None:
        config = PEagleConfig.from_pretrained(head_directory(head))
        if config.autoregressive:
            tokens = config.num_depths or DEFAULT_SPECULATIVE_TOKENS
            flags = " ".join(sglang_arguments(head, tokens, autoregressive=True))
            raise InputError(f"{head}: is an EAGLE-3 head (parallel_drafting is false): serve it with {flags}")


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
    if not model_config.is_draft_model or model_config.speculative_algorithm != NAME:
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
