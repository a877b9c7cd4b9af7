"""What ends a SGLang scheduler, or would be served wrong, is answered with an error instead: HTTP 400, one sentence."""

from __future__ import annotations

from sglang_backend import cpu
from sglang_backend.algorithm import NAME


def refuse(tokenizer_manager, obj, input_ids) -> None:
    """BEFORE TokenizerManager._validate_one_request: its ValueErrors become HTTP 400.

    A prompt without tokens ends the scheduler inside the target's first layer. What stands for an image in a prompt
    is no token: the drafter has no embedding for it.
    """
    from sglang.srt.runtime_context import get_spec

    drafting = get_spec().speculative_algorithm == NAME
    empty = input_ids is not None and len(input_ids) == 0 and obj.input_embeds is None
    if empty and (drafting or cpu.selected()):
        raise ValueError("The prompt has no tokens.")
    if drafting and obj.contains_mm_input():
        raise ValueError("PEAGLE drafts text: send requests with images, video or audio to a server without it.")


def install() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
    HookRegistry.register(target, refuse, HookType.BEFORE)
