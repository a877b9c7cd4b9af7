"""Gemma 3's aux states, whole: SGLang 0.5.23 captures a layer's output without the residual that still waits beside it.

Its Gemma 3 layers hand on (output, residual) and add the two inside the next layer's first norm, but what it captures
between them is the output alone. A head is trained on their sum, the state entering a layer, so drafts would be poor.
Here the layers before a captured state hand on the sum; the next layer then starts from it, with the same numbers.
"""

from __future__ import annotations


def add_residuals(_result, *, model, eagle_use_aux_hidden_state: bool, **_: object) -> None:
    """Add the residuals AFTER configure_aux_hidden_state_capture named the layers, before any CUDA graph."""
    if not eagle_use_aux_hidden_state or type(model).__name__ != "Gemma3ForCausalLM":
        return
    backbone = model.model
    for captured in backbone.layers_to_capture:
        if 0 < captured < len(backbone.layers):
            backbone.layers[captured - 1].register_forward_hook(lambda _, __, out: (out[0] + out[1], None))
