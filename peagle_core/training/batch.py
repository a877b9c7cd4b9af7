"""One packed row with what the target said about it, and which of its elements are charged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.draft_vocabulary import draft_vocab_ids, membership
from peagle_core.elements import Elements, supervised
from peagle_core.loss import CHUNK_ROWS


@dataclass(frozen=True)
class Batch:
    """One packed row of n tokens and what the target said about them.

    input_ids: int64[n]; aux: [n, 3H_t], the three aux states g_i concatenated; final_hidden: [n, H_t], y_i after the
    target's final norm; loss_mask: bool[n], True where the target generated the token; doc_ids: int64[n], -1 = padding.
    """

    input_ids: Tensor
    aux: Tensor
    final_hidden: Tensor
    loss_mask: Tensor
    doc_ids: Tensor

    @property
    def doc_starts(self) -> Tensor:
        """Return the index of the first token of each token's document, int64[n]."""
        index = torch.arange(len(self.doc_ids), device=self.doc_ids.device)
        is_start = torch.ones_like(self.doc_ids, dtype=torch.bool)
        is_start[1:] = self.doc_ids[1:] != self.doc_ids[:-1]
        return torch.where(is_start, index, 0).cummax(0).values


def draft_vocab_rows(target_head: Tensor, d2t: Tensor) -> Tensor:
    """Return [V_d, H_t]: the rows of the target's output head [V, H_t] that the draft vocabulary keeps."""
    return target_head if len(d2t) == len(target_head) else target_head[draft_vocab_ids(d2t)]


def charged_elements(elements: Elements, batch: Batch, target_head: Tensor, d2t: Tensor) -> Tensor:
    """Return bool[N]: supervised elements whose label lies in the draft vocabulary.

    The label is the target's top-1 there, as in EAGLE-3.
    target_head: [V, H_t], the target's output head; d2t: int64[V_d] offsets. Summed over a step's batches and ranks,
    this is the loss's one denominator.
    """
    charged = supervised(elements, batch.loss_mask, batch.doc_ids)
    if len(d2t) == len(target_head):
        return charged
    in_vocab = membership(draft_vocab_ids(d2t), len(target_head))
    charged[charged.clone()] = in_vocab[target_top1(elements[charged], batch, target_head)]
    return charged


def target_top1(elements: Elements, batch: Batch, target_head: Tensor) -> Tensor:
    """Return the token that the target finds likeliest where each element predicts one, int64[N], of all tokens.

    target_head: [V, H_t].
    """
    slot, row_of = (elements.position + 1).unique(return_inverse=True)
    states = batch.final_hidden[slot].split(CHUNK_ROWS)
    top = torch.cat([(x @ target_head.to(x.dtype).T).argmax(-1) for x in states]) if len(slot) else slot
    return top[row_of]
