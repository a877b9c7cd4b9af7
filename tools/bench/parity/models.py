"""A random target and random P-EAGLE heads, loud enough that a wrong row, slot or position shows in the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from peagle_core.checkpoint import save_drafter
from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter

SMALL: dict[str, Any] = {"num_hidden_layers": 8, "hidden_size": 128, "vocab_size": 1024, "num_attention_heads": 4}
LARGE: dict[str, Any] = {
    "num_hidden_layers": 28,
    "hidden_size": 512,
    "vocab_size": 49152,
    "num_attention_heads": 8,
}
KV_HEADS, CONTEXT, MASK = 2, 2048, 3


def save_models(root: Path, large: bool) -> None:
    """Write target/, plain/ (4 layers of the target's shape) and other/ below root.

    other/: 2 layers of half the width, as many heads of keys as of queries, two thirds of the vocabulary, a correction
    that changes logits as much as they are. A GPU takes the large ones (a target of 134M parameters), with heads of 64
    as kernels like them; they are random alike.
    """
    shape = LARGE if large else SMALL
    hidden, heads, vocab = shape["hidden_size"], shape["num_attention_heads"], shape["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, intermediate_size=3 * hidden, num_key_value_heads=KV_HEADS, head_dim=64,
        max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False,
        initializer_range=0.04,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "target")  # type: ignore[arg-type]
    _save_head(root / "plain", shape, {})
    _save_head(
        root / "other", shape,
        {"num_hidden_layers": 2, "hidden_size": hidden // 2, "intermediate_size": hidden,
         "num_attention_heads": heads // 2, "num_key_value_heads": heads // 2,
         "draft_vocab_size": vocab * 2 // 3 // 8 * 8, "correction_rank": 16},
    )  # fmt: skip


def _save_head(directory: Path, target: dict[str, Any], changes: dict[str, int]) -> None:
    """Write a random head for the target; changes: of its shape."""
    hidden, layers = target["hidden_size"], target["num_hidden_layers"]
    shape: dict[str, Any] = {
        "vocab_size": target["vocab_size"], "hidden_size": hidden, "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4, "num_attention_heads": target["num_attention_heads"], "num_key_value_heads": KV_HEADS,
        "head_dim": 64, "mask_token_id": MASK, "num_depths": 7, "max_position_embeddings": CONTEXT,
        "target_hidden_size": hidden, "aux_layer_ids": (2, layers // 2, layers - 3),
    }  # fmt: skip
    torch.manual_seed(1)
    drafter = PEagleDrafter(PEagleConfig(**{**shape, **changes}))
    for parameter in drafter.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.04 if parameter.shape[-1] >= 128 else 0.1)
    if drafter.correction is not None:
        for parameter in drafter.correction.parameters():
            parameter.data.normal_(0, 0.45)
    size, vocab = drafter.config.draft_vocab_size, target["vocab_size"]
    if size != vocab:
        kept = torch.randperm(vocab)[:size].sort().values
        drafter.d2t.copy_(kept - torch.arange(size))
    save_drafter(drafter, directory, torch.bfloat16)
