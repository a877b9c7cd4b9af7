"""Mode "stream": depth 0 once, then the chains a chunk at a time against its cached keys and values.

Two consequences of the mask rule make it exact (docs/training_at_scale.md): the depth-0 path is a causal pass of its
own that knows nothing of the chains, and chains of different anchors are independent once its keys and values are
given. So the depth-0 pass is cut off at leaves - every layer's keys and values, its outputs, the mask row. Each chunk
runs forward and backward at once and adds to the leaves' gradients; one last backward carries those through depth 0.
Nothing is computed twice, and memory is S rows plus one chunk, whatever the number of depths.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from peagle_core.attention import make_attention
from peagle_core.elements import Elements
from peagle_core.training.step import Step

# Large enough to keep a GPU busy; small enough that a CPU's allocator reuses its memory.
GPU_CHUNK_ROWS, CPU_CHUNK_ROWS = 8192, 2048


class Cut:
    """Where the depth-0 graph is cut: each tensor's leaf stands for it in the chunks and collects its gradient."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def leaf(self, x: Tensor) -> Tensor:
        """Return a leaf with x's values, in float32 or better so that sums of gradients over many chunks stay exact."""
        leaf = x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_(x.requires_grad)
        self.pairs.append((x, leaf))
        return leaf

    def backward(self) -> None:
        """Carry the collected gradients into the graph."""
        used = [(x, leaf.grad.to(x.dtype)) for x, leaf in self.pairs if leaf.grad is not None]
        if used:
            torch.autograd.backward([x for x, _ in used], [grad for _, grad in used])


def stream(step: Step) -> None:
    """Run one depth-0 pass, then one pass per chunk of about chunk_rows elements."""
    drafter, batch, elements = step.drafter, step.batch, step.elements
    is_mask = elements.depth > 0
    real = elements[~is_mask]
    slots = real.anchor

    # The depth-0 rows and, as one more, the mask row that all chains start from.
    last_is_mask = torch.arange(len(slots) + 1, device=slots.device) == len(slots)
    source = torch.arange(len(slots) + 1, device=slots.device).clamp(max=max(len(slots) - 1, 0))
    embed, fused = drafter.input_rows(batch.input_ids[slots + 1], batch.aux[slots], last_is_mask, source)
    cut = Cut()
    hidden, context = depth_zero(step, real, embed[:-1], fused[:-1], cut)
    mask_embed, mask_fused = cut.leaf(embed[-1:]), cut.leaf(fused[-1:])
    anchor_fused = cut.leaf(fused[:-1]) if drafter.hidden_design is not None else None
    slot_of = (~is_mask).cumsum(0) - 1

    for rows in chunks(step, chunk_rows_of(step)):
        if not step.charged[rows].any():
            continue
        real_rows, chain_rows = rows[~is_mask[rows]], rows[is_mask[rows]]
        states = [hidden[slot_of[real_rows]]]
        if len(chain_rows):
            chains = elements[chain_rows]
            attend = make_attention(chains, batch.doc_ids, step.options.attention, slots=slots)
            inputs = [x.expand(len(chains), -1) for x in (mask_embed, mask_fused)]
            if drafter.hidden_design is not None and anchor_fused is not None:
                inputs[1] = inputs[1] + drafter.hidden_design(anchor_fused[slot_of[chain_rows]], chains.depth)
            states.append(
                drafter(
                    *inputs,
                    step.positions(chains),
                    lambda layer, q, k, v, attend=attend: attend(q, k, v, context[layer]),
                    step.options.recompute,
                )
            )
        step.charge(torch.cat([real_rows, chain_rows]), torch.cat(states))
    cut.backward()


def depth_zero(
    step: Step, real: Elements, embed: Tensor, fused: Tensor, cut: Cut
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """Run the S depth-0 rows; return leaves of their outputs [S, H] and of each layer's keys and values."""
    attend = make_attention(real, step.batch.doc_ids, step.options.attention)
    cache: dict[int, tuple[Tensor, Tensor]] = {}

    def attend_and_keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.setdefault(layer, (k, v))  # recomputation in the backward pass comes here again
        return attend(q, k, v)

    hidden = step.drafter(embed, fused, step.positions(real), attend_and_keep, step.options.recompute)
    return cut.leaf(hidden), {layer: (cut.leaf(k), cut.leaf(v)) for layer, (k, v) in cache.items()}


def chunk_rows_of(step: Step) -> int:
    """Return the elements per chunk: as asked for, or as suits the device."""
    return step.options.chunk_rows or default_chunk_rows(step.elements.depth.device.type)


def default_chunk_rows(device_type: str) -> int:
    """Return the elements per chunk that suit a device ("cpu", "cuda")."""
    return CPU_CHUNK_ROWS if device_type == "cpu" else GPU_CHUNK_ROWS


def chunks(step: Step, chunk_rows: int) -> Iterator[Tensor]:
    """Yield int64[..] rows of consecutive anchors, at most chunk_rows of them unless one chain is longer."""
    depth = step.elements.depth
    starts = [*(depth == 0).nonzero().squeeze(-1).tolist(), len(depth)]
    low = 0
    for chain_start, chain_stop in pairwise(starts):
        if chain_stop - low > chunk_rows and chain_start > low:
            yield torch.arange(low, chain_start, device=depth.device)
            low = chain_start
    if low < len(depth):
        yield torch.arange(low, len(depth), device=depth.device)
