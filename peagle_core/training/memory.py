"""How much activation memory a `stream` step takes, and the chunk that fits a budget.

Not a formula over the architecture: the bytes that autograd keeps per row are counted on a probe pass of the drafter
itself, so they follow its shapes, its dtype, the attention backend, autocast and recomputation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.loss import CHUNK_ROWS as LOSS_CHUNK_ROWS
from peagle_core.training.batch import Batch
from peagle_core.training.flat import forward_elements

PROBE_ROWS = 64
MIN_CHUNK_ROWS = 64


def _saved_bytes(drafter: PEagleDrafter, num_rows: int, attention: str, recompute: bool) -> int:
    """Bytes that one forward over num_rows depth-0 rows keeps for the backward pass, parameters not counted."""
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
    owned = {p.untyped_storage().data_ptr() for p in drafter.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a freed storage could come back under the same address

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward_elements(drafter, batch, Elements(slots, torch.zeros_like(slots)), attention, recompute)
    return sum(kept.values())


def _bytes_per_row(drafter: PEagleDrafter, attention: str, recompute: bool) -> float:
    small, large = (_saved_bytes(drafter, rows, attention, recompute) for rows in (PROBE_ROWS, 2 * PROBE_ROWS))
    return (large - small) / PROBE_ROWS


def _costs(drafter: PEagleDrafter, num_slots: int, attention: str, recompute: bool) -> tuple[float, float]:
    """Bytes that do not depend on the chunk, and bytes per row of the chunk."""
    config = drafter.config
    per_row = kept = _bytes_per_row(drafter, attention, recompute)
    if recompute:  # one layer at a time is there in full
        per_row += _bytes_per_row(drafter, attention, False) / config.num_hidden_layers
    element_size = max(4, drafter.fc.weight.element_size())
    # Leaves and their gradients: hidden, keys and values of every layer; then the gradients that flow through depth 0.
    leaf = config.hidden_size + 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    per_slot = kept + 3 * leaf * element_size
    # Draft and target logits, probabilities and their gradient for one chunk of the loss, and the head's gradient.
    loss = 5 * LOSS_CHUNK_ROWS * config.draft_vocab_size * 4
    if drafter.lm_head.weight.requires_grad:
        loss += 2 * drafter.lm_head.weight.numel() * element_size
    # While a chunk runs backward, its rows' gradients stand beside what was kept: about one layer's worth.
    return num_slots * per_slot + loss, per_row * (1 + 1 / config.num_hidden_layers)


def stream_bytes(
    drafter: PEagleDrafter, num_slots: int, chunk_rows: int, attention: str = "sdpa", recompute: bool = False
) -> int:
    """Activation bytes of one `stream` step: estimate, without parameters, their gradients and the batch itself.

    num_slots: S, depth-0 rows; chunk_rows: elements per chunk.
    """
    fixed, per_row = _costs(drafter, num_slots, attention, recompute)
    return int(fixed + chunk_rows * per_row)


def chunk_rows_within(budget: int, drafter: PEagleDrafter, num_slots: int, attention: str, recompute: bool) -> int:
    """The largest chunk whose `stream_bytes` fit `budget` bytes. Raises InputError where not even 64 rows fit."""
    fixed, per_row = _costs(drafter, num_slots, attention, recompute)
    rows = int((budget - fixed) / per_row)
    if rows < MIN_CHUNK_ROWS:
        needed = int(fixed + MIN_CHUNK_ROWS * per_row)
        hint = "" if recompute else "; recompute=True needs less"
        raise InputError(f"memory_budget {budget} is below the {needed} bytes that {num_slots} slots need{hint}")
    return rows
