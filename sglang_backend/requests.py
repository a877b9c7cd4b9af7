"""A prompt without tokens ends a SGLang scheduler inside the target's first layer; answer it with an error instead."""

from __future__ import annotations

from sglang_backend import cpu
from sglang_backend.algorithm import NAME


def refuse_empty_prompt(tokenizer_manager, obj, input_ids) -> None:
    """BEFORE TokenizerManager._validate_one_request: its ValueErrors become HTTP 400."""
    from sglang.srt.runtime_context import get_spec

    concerned = cpu.selected() or get_spec().speculative_algorithm == NAME
    if concerned and input_ids is not None and len(input_ids) == 0 and obj.input_embeds is None:
        raise ValueError("The prompt has no tokens.")


def install() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
    HookRegistry.register(target, refuse_empty_prompt, HookType.BEFORE)
