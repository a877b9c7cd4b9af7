"""How long a text a target was made for, and what that means for documents and for text that is generated."""

from __future__ import annotations

from typing import Any

from trainer.config import RunConfig
from trainer.parallel.processes import is_main

KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")


def context_length(config: Any) -> int | None:
    """Return the tokens that a text of this target may have, None where its config (transformers') does not say.

    Source: SGLang's `get_context_length`, so that training and serving agree.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    stretched = "original_max_position_embeddings" in rope or rope.get("rope_type") == "llama3"
    factor = 1.0 if stretched else float(rope.get("factor") or 1.0)
    found = next((value for key in KEYS if (value := getattr(text, key, None)) is not None), None)
    return None if found is None else int(factor * found)


def within_context(config: RunConfig, of_target: Any) -> RunConfig:
    """Return the run's config with data.max_length within the target's context, with a warning where it was not.

    of_target: the target's config.
    """
    context, wanted = context_length(of_target), config.data.max_length
    if context is None or wanted <= context:
        return config
    if is_main():
        print(f"warning: data.max_length {wanted} exceeds the target's context; documents are cut at {context} tokens")
    return config.model_copy(update={"data": config.data.model_copy(update={"max_length": context})})


def room_for_answer(config: Any, prompt_length: int, num_draft_tokens: int, wanted: int) -> int:
    """Return how many tokens may follow a prompt, at most `wanted`, so that drafts behind the last fit the context."""
    context = context_length(config)
    return wanted if context is None else max(0, min(wanted, context - prompt_length - num_draft_tokens))
