"""Training-time test, as EAGLE-3 heads learn (arXiv 2503.01840): the drafter reads its own states in training too.

Rows are the elements of P-EAGLE, with other inputs at depth d >= 1: (a, d) reads the embedding of the true token
x_{a+d+1} and the last layer's output at (a, d-1), before the final norm and with no fc in between. So K passes, one per
depth, each over the chains that reach it; what a row sees is the same mask rule. Serving repeats it with drafts for the
true tokens (`peagle_core.generate.draft_autoregressively`).

Depth 0 is run once and cut off at leaves, as in mode "stream", and then the chains a chunk at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peagle_core.attention.chains import ChainAttention
from peagle_core.training.options import EAGLE3_MODES, check_mode
from peagle_core.training.step import Step
from peagle_core.training.stream import Cut, chunk_rows_of, chunks, depth_zero

Keys = dict[int, tuple[Tensor, Tensor]]  # layer -> keys and values


def eagle3(step: Step) -> None:
    """Run one depth-0 pass, then per chunk (mode "stream") or for all chains at once ("flat") one pass for each depth.

    attention is that of the depth-0 rows; the chains' rows, a few keys more than the context, are joined from parts on
    every device. Position a + d of every element must be a slot of the anchor's document. Raises InputError in mode
    "partition".
    """
    check_mode(step.options.mode, EAGLE3_MODES)
    drafter, batch, elements = step.drafter, step.batch, step.elements
    is_chain = elements.depth > 0
    real = elements[~is_chain]
    slots = real.anchor
    row, is_mask = torch.arange(len(slots), device=slots.device), torch.zeros_like(slots, dtype=torch.bool)
    embed, fused = drafter.input_rows(batch.input_ids[slots + 1], batch.aux[slots], is_mask, row)
    cut = Cut()
    hidden, context = depth_zero(step, real, embed, fused, cut)
    slot_of = (~is_chain).cumsum(0) - 1

    for chunk in chunks(step, chunk_rows_of(step) if step.options.mode == "stream" else len(elements)):
        if not step.charged[chunk].any():
            continue
        depth = elements.depth[chunk]
        above = chunk[depth == 0]
        state = hidden[slot_of[above]]
        own: Keys = {}
        charged_rows, states = [above], [state]
        for d in range(1, int(depth.max()) + 1):
            below = chunk[depth == d]
            parent = torch.searchsorted(above, below - 1)  # anchor-major: a row follows the one it continues
            state, own = _deeper(step, below, state[parent], _select(own, parent), context, slots)
            above = below
            charged_rows.append(below)
            states.append(state)
        step.charge(torch.cat(charged_rows), torch.cat(states))
    cut.backward()


def _deeper(step: Step, rows: Tensor, state: Tensor, own: Keys, context: Keys, slots: Tensor) -> tuple[Tensor, Keys]:
    """Run one pass over the rows of one depth d; return their states and the keys and values of their chains.

    state: [N, H], of the rows before them; own: [N, d-1, kv_heads, D], keys and values of their chains so far.
    """
    elements = step.elements[rows]
    embed = step.drafter.embed_tokens(step.batch.input_ids[elements.position + 1])
    attention = ChainAttention(elements, step.batch.doc_ids, slots)
    grown: Keys = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv = k[:, None], v[:, None]
        if layer in own:
            before = own[layer]
            kv = torch.cat([before[0], kv[0]], 1), torch.cat([before[1], kv[1]], 1)
        grown.setdefault(layer, kv)  # recomputation in the backward pass comes here again
        return attention(q, *kv, context[layer])

    return step.drafter(embed, state, step.positions(elements), attend, step.options.recompute), grown


def _select(own: Keys, chains: Tensor) -> Keys:
    return {layer: (k[chains], v[chains]) for layer, (k, v) in own.items()}
