"""Compute hidden states with a transformers causal LM in this process.

The documents of a packed row go through the target as separate, right-padded sequences: whatever its attention looks
like, no document sees another, and no real token sees the padding behind it.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from peagle_core.target import pick_states, run_target, target_head
from peagle_core.training import Batch
from trainer.data.packing import PackedRow
from trainer.hidden_states.base import StateSource, batch_of

# Padding up to a quarter of the real tokens is cheaper than one more forward pass.
MAX_PADDED = 1.25


class TransformersStates(StateSource):
    """Runs the target, which must be on the training device. aux_layer_ids: "state entering layer k"."""

    target: PreTrainedModel

    def __init__(self, target: PreTrainedModel, aux_layer_ids: tuple[int, ...]) -> None:
        self.target = target
        self.aux_layer_ids = aux_layer_ids
        self.head = target_head(target)

    @torch.no_grad()
    def __call__(self, row: PackedRow) -> Batch:
        device = self.head.device
        documents = row.input_ids.split(row.lengths)
        aux, final = [documents[0]] * len(documents), [documents[0]] * len(documents)  # every place is filled below
        for group in group_by_length(row.lengths):
            ids = nn.utils.rnn.pad_sequence([documents[i] for i in group], batch_first=True).to(device)
            lengths = torch.tensor([len(documents[i]) for i in group], device=device)
            mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
            output, _ = run_target(
                self.target, ids, self.aux_layer_ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=1
            )
            group_aux, group_final = pick_states(output.hidden_states, self.aux_layer_ids)
            for place, i in enumerate(group):
                aux[i] = group_aux[place, : lengths[place]]
                final[i] = group_final[place, : lengths[place]]
        blame = "the target's hidden states are not finite; try target_dtype=float32"
        return batch_of(row, aux, final, device, blame)


def group_by_length(lengths: list[int]) -> list[list[int]]:
    """Return indices in groups of like lengths, so that padding each group to its longest costs at most MAX_PADDED."""
    groups: list[list[int]] = []
    longest = real = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and longest * (len(groups[-1]) + 1) <= MAX_PADDED * (real + lengths[i]):
            groups[-1].append(i)
            real += lengths[i]
        else:
            groups.append([i])
            longest = real = lengths[i]
    return groups
