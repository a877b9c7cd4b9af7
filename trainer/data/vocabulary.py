"""Choose the tokens of a draft vocabulary: those the target generated most often; and tell how much text they cover."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from peagle_core.draft_vocabulary import membership, offsets
from trainer.data.documents import Document


def count_generated(documents: Iterable[Document], vocab_size: int) -> Tensor:
    """Count how often the target generated each token: int64[V]."""
    generated = [document.input_ids[document.loss_mask] for document in documents]
    return torch.bincount(torch.cat([torch.zeros(0, dtype=torch.int64), *generated]), minlength=vocab_size)


def most_frequent(counts: Tensor, draft_vocab_size: int) -> Tensor:
    """Return the most frequent ids, int64[V_d], ascending (the smaller id first among equals)."""
    return counts.argsort(descending=True, stable=True)[:draft_vocab_size].sort().values


def draft_map(counts: Tensor, draft_vocab_size: int) -> dict[str, Tensor]:
    """Return d2t int64[V_d]: target id minus draft id; t2d bool[V]: whether a target token can be drafted."""
    ids = most_frequent(counts, draft_vocab_size)
    return {"d2t": offsets(ids), "t2d": membership(ids, len(counts))}


def coverage(counts: Tensor, sizes: Iterable[int]) -> dict[int, float]:
    """Return the share of the generated tokens that the `size` most frequent ones make up."""
    running = counts.sort(descending=True).values.cumsum(0)
    return {size: int(running[min(size, len(counts)) - 1]) / max(1, int(running[-1])) for size in sizes}


def usual_sizes(vocab_size: int) -> list[int]:
    """Return powers of two below the vocabulary, six at most."""
    return [2**k for k in range(vocab_size.bit_length()) if 2**k < vocab_size][-6:]
