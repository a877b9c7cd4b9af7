"""A few texts to go on from, for checks of a head that need some."""

from __future__ import annotations

import torch

from tools.heads.target import Target

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Q: What is 12 times 12?\nA:",
    "Once upon a time, in a village by the sea, there lived",
)


def short_texts(target: Target) -> list[list[int]]:
    """Return token ids of the texts; random ones for a target without a tokenizer."""
    if target.tokenizer is not None:
        return [target.tokenizer(text)["input_ids"] for text in TEXTS]
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, target.config.vocab_size, (16,), generator=rng).tolist() for _ in TEXTS]
