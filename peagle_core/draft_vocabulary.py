"""The draft vocabulary: a selection of target ids. Checkpoints store it as d2t, the target id minus the draft id."""

from __future__ import annotations

import torch
from torch import Tensor


def draft_vocab_ids(d2t: Tensor) -> Tensor:
    """Return the target id of each draft id, int64[V_d]. d2t: int64[V_d] offsets."""
    return torch.arange(len(d2t), device=d2t.device) + d2t


def offsets(ids: Tensor) -> Tensor:
    """Return d2t, int64[V_d]: the inverse of `draft_vocab_ids`."""
    return ids - torch.arange(len(ids), device=ids.device)


def draft_ids(ids: Tensor, vocab_size: int) -> Tensor:
    """Return the draft id of each target id, int64[V + 1], -1 where it cannot be drafted. ids: int64[V_d], target ids.

    The last entry is -1, too: that of a token that there is not, id -1, and of any id that the vocabulary has not.
    """
    table = torch.full((vocab_size + 1,), -1, dtype=torch.int64, device=ids.device)
    return table.index_copy(0, ids, torch.arange(len(ids), device=ids.device))


def membership(ids: Tensor, vocab_size: int) -> Tensor:
    """Return t2d, bool[V]: whether a target token can be drafted. ids: int64[V_d], target ids."""
    t2d = torch.zeros(vocab_size, dtype=torch.bool, device=ids.device)
    t2d[ids] = True
    return t2d
