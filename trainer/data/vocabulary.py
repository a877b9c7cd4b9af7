"""Choose the tokens of a draft vocabulary, and tell how much text they cover.

What ends a turn is always among them, then added tokens that the target generated, then its most frequent tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peagle_core.draft_vocabulary import membership, offsets
from peagle_core.errors import InputError
from trainer.data.documents import Document


def count_generated(documents: Iterable[Document], vocab_size: int) -> Tensor:
    """Count how often the target generated each token: int64[V]."""
    generated = [document.input_ids[document.loss_mask] for document in documents]
    return torch.bincount(torch.cat([torch.zeros(0, dtype=torch.int64), *generated]), minlength=vocab_size)


@dataclass(frozen=True)
class Essential:
    """Ids that a draft vocabulary must not lack.

    ends: those that end a turn; added: the tokenizer's added tokens, special or not (`<think>`, `<tool_call>`), needed
    where they were generated at all.
    """

    ends: frozenset[int] = frozenset()
    added: frozenset[int] = frozenset()


NOTHING_ESSENTIAL = Essential()


def essential_ids(ends: frozenset[int], tokenizer: PreTrainedTokenizerBase | None) -> Essential:
    """Return the essential ids of a target. tokenizer: None where it has none."""
    return Essential(ends, frozenset(() if tokenizer is None else tokenizer.added_tokens_decoder))


def by_importance(counts: Tensor, essential: Essential = NOTHING_ESSENTIAL) -> Tensor:
    """Return all ids, int64[V], the most important first.

    Ends, then added tokens that were generated, then the others; each group by how often they were generated, the
    smaller id first among equals.
    """
    group, above = torch.zeros_like(counts), counts.max() + 1
    group[_inside(essential.added, counts)] = 1
    group[counts == 0] = 0
    group[_inside(essential.ends, counts)] = 2
    return (counts + above * group).argsort(descending=True, stable=True)


def most_frequent(counts: Tensor, draft_vocab_size: int, essential: Essential = NOTHING_ESSENTIAL) -> Tensor:
    """Return the ids of a draft vocabulary, int64[V_d], ascending. Raises InputError where the ends do not fit."""
    ends = len(_inside(essential.ends, counts))
    if draft_vocab_size < ends:
        raise InputError(f"drafter.draft_vocab_size {draft_vocab_size} has no room for the {ends} ids that end a turn")
    return by_importance(counts, essential)[:draft_vocab_size].sort().values


def draft_map(counts: Tensor, draft_vocab_size: int, essential: Essential = NOTHING_ESSENTIAL) -> dict[str, Tensor]:
    """Return d2t int64[V_d]: target id minus draft id; t2d bool[V]: whether a target token can be drafted."""
    ids = most_frequent(counts, draft_vocab_size, essential)
    return {"d2t": offsets(ids), "t2d": membership(ids, len(counts))}


def coverage(counts: Tensor, sizes: Iterable[int], essential: Essential = NOTHING_ESSENTIAL) -> dict[int, float]:
    """Return the share of the generated tokens that a draft vocabulary of each size covers."""
    running = counts[by_importance(counts, essential)].cumsum(0)
    return {size: int(running[min(size, len(counts)) - 1]) / max(1, int(running[-1])) for size in sizes}


def _inside(ids: frozenset[int], counts: Tensor) -> Tensor:
    """Return those of the ids that the target's vocabulary has, int64[n]: tokenizers may know more."""
    return torch.tensor(sorted(i for i in ids if i < len(counts)), dtype=torch.int64)


def usual_sizes(vocab_size: int) -> list[int]:
    """Return powers of two below the vocabulary, six at most."""
    return [2**k for k in range(vocab_size.bit_length()) if 2**k < vocab_size][-6:]
