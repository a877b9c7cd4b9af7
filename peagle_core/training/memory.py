"""How much activation memory a step takes, and the `stream` chunk that fits a budget.

Not a formula over the architecture: the bytes that autograd keeps per row are counted on a probe pass of the drafter
itself, so they follow its shapes, its dtype, the attention backend, autocast and recomputation. A drafter made of fake
tensors (`torch._subclasses.FakeTensorMode`) is probed too, at no cost: that is how a dry run knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.loss import CHUNK_ROWS as LOSS_CHUNK_ROWS
from peagle_core.told import TOLD
from peagle_core.training.batch import Batch
from peagle_core.training.flat import forward_elements

PROBE_ROWS = 64
MIN_CHUNK_ROWS = 64


@dataclass(frozen=True)
class ActivationCosts:
    """Bytes of activations, without parameters, their gradients and the batch itself: estimates.

    kept: per row of a forward pass, until its backward; row: the same at the peak of the backward pass; leaf: more per
    depth-0 slot of a `stream` step; loss: once, for one chunk of the loss. hint: what to say when nothing fits.
    """

    kept: float
    row: float
    leaf: float
    loss: float
    hint: str

    def flat(self, num_rows: int) -> int:
        """Return the bytes of one pass over num_rows: mode `flat`, or a segment of `partition` with its context."""
        return int(num_rows * self.row + self.loss)

    def stream(self, num_slots: int, chunk_rows: int) -> int:
        """Return the bytes of a `stream` step. num_slots: S, depth-0 rows; chunk_rows: elements per chunk."""
        return int(num_slots * (self.kept + self.leaf) + self.loss + chunk_rows * self.row)

    def chunk_rows_within(self, budget: int, num_slots: int) -> int:
        """Return the largest chunk whose `stream` bytes fit. Raises InputError where not even 64 rows do."""
        rows = int((budget - self.stream(num_slots, 0)) / self.row)
        if rows < MIN_CHUNK_ROWS:
            needed = self.stream(num_slots, MIN_CHUNK_ROWS)
            raise InputError(f"a budget of {budget} bytes is below the {needed} that {num_slots} slots need{self.hint}")
        return rows


def activation_costs(drafter: PEagleDrafter, attention: str = "torch", recompute: bool = False) -> ActivationCosts:
    """Probe the drafter for its activation costs; to be called under the autocast that training will use."""
    config = drafter.config
    kept = peak = _bytes_per_row(drafter, partial(_pass, attention, recompute))
    if recompute:  # one layer at a time is there in full
        peak += _bytes_per_row(drafter, partial(_pass, attention, False)) / config.num_hidden_layers
    element_size = max(4, drafter.fc.weight.element_size())
    # Leaves and their gradients: hidden, keys and values of every layer; then the gradients that flow through depth 0.
    leaf = config.hidden_size + 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    # Draft and target logits, probabilities and their gradient for one chunk of the loss, and the head's gradient.
    loss = 5 * LOSS_CHUNK_ROWS * config.draft_vocab_size * 4
    if drafter.lm_head.weight.requires_grad:
        loss += 2 * drafter.lm_head.weight.numel() * element_size
    if drafter.correction is not None:  # both heads side by side, and the gradient of that
        width = config.hidden_size + config.correction_rank
        loss += 2 * config.draft_vocab_size * width * element_size
    # While rows run backward, their gradients stand beside what was kept: about one layer's worth.
    row = peak * (1 + 1 / config.num_hidden_layers)
    if drafter.correction is not None:  # it is there for all rows of a pass or chunk at once, and so are its gradients
        row += 2 * _bytes_per_row(drafter, _corrected)
    return ActivationCosts(kept, row, 3 * leaf * element_size, loss, "" if recompute else "; recompute=True needs less")


def stream_bytes(
    drafter: PEagleDrafter, num_slots: int, chunk_rows: int, attention: str = "torch", recompute: bool = False
) -> int:
    """Estimate the activation bytes of one `stream` step, see `ActivationCosts`."""
    return activation_costs(drafter, attention, recompute).stream(num_slots, chunk_rows)


Probe = Callable[[PEagleDrafter, int], object]  # runs forward over so many rows


def _bytes_per_row(drafter: PEagleDrafter, probe: Probe) -> float:
    small, large = (_saved_bytes(drafter, rows, probe) for rows in (PROBE_ROWS, 2 * PROBE_ROWS))
    return (large - small) / PROBE_ROWS


def _saved_bytes(drafter: PEagleDrafter, num_rows: int, probe: Probe) -> int:
    """Return the bytes that a probe over num_rows rows keeps for the backward pass. Parameters are not counted."""
    owned = {p.untyped_storage()._cdata for p in drafter.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage could come back under the same address

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage.nbytes()
            alive.append(x)
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        probe(drafter, num_rows)
    return sum(kept.values())


def _corrected(drafter: PEagleDrafter, num_rows: int) -> Tensor:
    hidden = drafter.fc.weight.new_zeros(num_rows, drafter.config.hidden_size, requires_grad=True)
    told = torch.zeros(num_rows, TOLD, dtype=torch.int64, device=hidden.device)
    features, head, copied = drafter.loss_factors(hidden, told)
    logits = features @ head.to(features.dtype).T
    return logits if copied is None else copied.add_to(logits)


def _pass(attention: str, recompute: bool, drafter: PEagleDrafter, num_rows: int) -> None:
    weight = drafter.fc.weight
    n = num_rows + 1
    batch = Batch(
        torch.zeros(n, dtype=torch.int64, device=weight.device),
        weight.new_zeros(n, drafter.config.fused_size),
        weight.new_zeros(n, drafter.config.target_hidden_size),
        torch.ones(n, dtype=torch.bool, device=weight.device),
        torch.zeros(n, dtype=torch.int64, device=weight.device),
    )
    slots = torch.arange(num_rows, device=weight.device)
    if not isinstance(weight, FakeTensor):
        forward_elements(drafter, batch, Elements(slots, torch.zeros_like(slots)), attention, recompute)
        return
    # The layout of elements depends on values, which fake tensors do not have.
    is_mask = torch.zeros_like(slots, dtype=torch.bool)
    embed, fused = drafter.input_rows(batch.input_ids[1:], batch.aux[1:], is_mask, slots)
    drafter(embed, fused, slots, lambda _, q, k, v: _FastAttention.apply(q, k, v), recompute)


class _FastAttention(torch.autograd.Function):
    """Keeps what the fast backends keep: queries, keys, values, outputs and log-sum-exps. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        return out
