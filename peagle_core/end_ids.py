"""Which token ids end a turn of a target: the ids at which a SGLang server stops, read without any weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from peagle_core.errors import InputError, first_line

# Llama 3's end of a message that calls a tool; SGLang stops there for every tokenizer that has it.
END_OF_MESSAGE = "<|eom_id|>"
CONFIG_ERRORS = (OSError, ValueError, KeyError, AttributeError, ImportError)


def end_ids(tokenizer: PreTrainedTokenizerBase | None, *configs: Any) -> frozenset[int]:
    """Return every id that ends a turn: the tokenizer's end, its `<|eom_id|>`, and `eos_token_id` of each config.

    configs: the target's model and generation config (None is passed over); each names no id, one, or a list. Source:
    SGLang's `ModelConfig.hf_eos_token_id` and `Req._check_token_based_finish`.
    """
    found = {i for config in configs for i in ids_of(getattr(config, "eos_token_id", None))}
    if tokenizer is not None:
        found |= {tokenizer.eos_token_id, tokenizer.get_added_vocab().get(END_OF_MESSAGE)} - {None}
    return frozenset(found)


def ids_of(eos_token_id: int | Collection[int] | None) -> frozenset[int]:
    """Return the ids that an `eos_token_id`, as transformers and its files spell it, names: none, one or several."""
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id or ())


def read_end_ids(target: str, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Return the `end_ids` of a target from its config.json and generation_config.json.

    target: its name or directory. Raises InputError for a config.json that is absent or cannot be read, and for a
    generation_config.json that is there and cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(target, trust_remote_code=False)
    except CONFIG_ERRORS as error:
        raise InputError(f"target {target!r} has no configuration that can be loaded ({first_line(error)})") from None
    try:
        generation: GenerationConfig | None = GenerationConfig.from_pretrained(target)
    except CONFIG_ERRORS as error:
        path = Path(target) / "generation_config.json"
        if path.is_file():
            raise InputError(f"{path}: cannot be read ({first_line(error)})") from None
        generation = None  # transformers and SGLang do without it, too
    return end_ids(tokenizer, config, generation)
