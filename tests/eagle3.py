"""EAGLE-3's training-time test, readable: chain by chain, as the serve-time loop drafts; heads over-fitted with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.generate import DraftCache
from peagle_core.training import Batch, loss_and_backward


def chain_states(drafter: PEagleDrafter, batch: Batch, anchor: int, num_depths: int) -> Tensor:
    """[K, H]: the outputs of one chain, teacher-forced: the real rows up to the anchor, then a row per true token that
    reads the output before it.
    """
    start = int(batch.doc_starts[anchor])
    slots = torch.arange(start, anchor + 1)
    real = torch.zeros_like(slots, dtype=torch.bool)
    embed, state = drafter.input_rows(batch.input_ids[slots + 1], batch.aux[slots], real, slots - start)
    cache, positions, states = DraftCache(), slots - start, []
    for depth in range(num_depths):
        if depth:
            embed = drafter.embed_tokens(batch.input_ids[anchor + depth + 1])[None]
            positions = positions[-1:] + 1
        state = drafter(embed, state, positions, cache.attend)[-1:]
        states.append(state[0])
    return torch.stack(states)


def loss_eagle3(
    drafter: PEagleDrafter,
    batch: Batch,
    elements: Elements,
    charged: Tensor,
    head: Tensor,
    loss: str = "kl",
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of the charged elements' losses towards head(y_{a+d+1}) over the draft vocabulary. head: [V, H_t]."""
    ids = torch.arange(len(drafter.d2t)) + drafter.d2t
    total = batch.aux.new_zeros(())
    for anchor in elements.anchor.unique().tolist():
        depths = elements.depth[charged & (elements.anchor == anchor)].tolist()
        if not depths:
            continue
        log_q = drafter.logits(chain_states(drafter, batch, anchor, max(depths) + 1)).log_softmax(-1)
        for d in depths:
            label = (head @ batch.final_hidden[anchor + d + 1])[ids]
            if loss == "kl":
                value = F.kl_div(log_q[d], label.softmax(-1), reduction="sum")
            else:
                value = F.nll_loss(log_q[d], label.argmax())
            total = total + (1.0 if weights is None else weights[d]) * value
    return total


def overfit_eagle3(
    drafter: PEagleDrafter, batches: list[Batch], head: Tensor, num_drafts: int, steps: int, lr: float
) -> None:
    """Until it knows the texts by heart. head: [V, H_t], the target's."""
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        for batch in batches:
            elements = sample_elements(batch.loss_mask, batch.doc_ids, num_drafts, 1.0)
            loss_and_backward(drafter, batch, elements, target_head=head, loss="ce")
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
