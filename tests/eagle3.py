"""Over-fit an EAGLE-3 head: training-time test, where a draft reads the draft before it and its own last state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import expand_kv
from peagle_core.drafter import PEagleDrafter
from peagle_core.training import Batch


class Chains:
    """Attention of one depth of all chains at a time: chain i sees the first rows up to its own, then itself."""

    def __init__(self) -> None:
        self.keys: dict[int, list[Tensor]] = {}
        self.values: dict[int, list[Tensor]] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: [S,h,D]; k, v: [S,hk,D], row i the chain anchored at slot i -> [S,h,D]."""
        keys, values = self.keys.setdefault(layer, []), self.values.setdefault(layer, [])
        keys.append(expand_kv(k, q.shape[1]))
        values.append(expand_kv(v, q.shape[1]))
        first = torch.einsum("ihd,jhd->hij", q, keys[0])
        first = first.masked_fill(~torch.ones(first.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        own = [torch.einsum("ihd,ihd->hi", q, key)[..., None] for key in keys[1:]]
        weights = (torch.cat([first, *own], dim=-1) * q.shape[-1] ** -0.5).softmax(-1)
        out = torch.einsum("hij,jhd->ihd", weights[..., : len(k)], values[0])
        for depth, value in enumerate(values[1:]):
            out = out + weights[..., len(k) + depth].T[..., None] * value
        return out


def loss_in_turn(drafter: PEagleDrafter, batch: Batch, num_drafts: int) -> Tensor:
    """Mean cross entropy of drafts 1..num_drafts of every chain anchored in the generated part of one document."""
    slots = torch.arange(len(batch.input_ids) - 1)
    embed, state = drafter.input_rows(batch.input_ids[1:], batch.aux[:-1], torch.zeros_like(slots, dtype=bool), slots)
    chains, losses = Chains(), []
    for depth in range(num_drafts):
        if depth:
            embed = drafter.embed_tokens(batch.input_ids[(slots + 1 + depth).clamp(max=len(slots))])
        state = drafter(embed, state, slots + depth, chains.attend)
        inside = batch.loss_mask[1:] & (slots + 2 + depth <= len(slots))
        labels = batch.input_ids[slots[inside] + 2 + depth]
        losses.append(F.cross_entropy(drafter.logits(state[inside]), labels))
    return torch.stack(losses).mean()


def overfit_in_turn(drafter: PEagleDrafter, batches: list[Batch], num_drafts: int, steps: int, lr: float) -> None:
    """Until it knows the texts by heart. The draft vocabulary is the target's."""
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        for batch in batches:
            loss_in_turn(drafter, batch, num_drafts).backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
