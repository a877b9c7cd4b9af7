"""What ends a SGLang scheduler, or would be served wrong, is answered with an error instead: HTTP 400, one sentence."""

from __future__ import annotations

import torch

from sglang_backend import NAME, cpu


def refuse(tokenizer_manager, obj, input_ids) -> None:
    """Refuse a request BEFORE TokenizerManager._validate_one_request, whose ValueErrors become HTTP 400.

    A prompt without tokens ends the scheduler inside the target's first layer, and so do embeddings, which SGLang
    rounds to bfloat16, in a target of another dtype. What stands for an image in a prompt is no token: the drafter has
    no embedding for it.
    """
    from sglang.srt.runtime_context import get_spec

    drafting = get_spec().speculative_algorithm == NAME
    if drafting or cpu.selected():
        if obj.input_embeds is not None:
            if tokenizer_manager.model_config.dtype != torch.bfloat16:
                raise ValueError("SGLang takes embeddings in bfloat16 only: start the server with --dtype bfloat16.")
        elif input_ids is not None and len(input_ids) == 0:
            raise ValueError("The prompt has no tokens.")
    if drafting and obj.contains_mm_input():
        raise ValueError("PEAGLE drafts text: send requests with images, video or audio to a server without it.")
