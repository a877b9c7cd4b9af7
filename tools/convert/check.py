"""Compare what source and result compute: both are read from disk and run on the same random input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.generate import DraftCache, chain_logits, draft_states
from peagle_core.tensors import SHARED, checked_tensors, expected_shapes
from tools.heads.head import Head
from tools.heads.target import Target

ROWS = 32
DEPTHS = 8


@dataclass(frozen=True)
class Difference:
    """Hold a comparison of [K, V_d] logits in float32.

    largest: difference. scale: the largest logit. same_drafts: the share of equal drafts.
    """

    largest: float
    scale: float
    same_drafts: float


@torch.no_grad()
def compare_heads(source: Head, result: Head, target: Target | None) -> Difference:
    """Run one drafter pass each, ROWS real rows and DEPTHS - 1 mask rows. One head is in memory at a time.

    A correction takes part if both have it.

    Where a head has no embedding or lm_head the target's stand in, or without a target the same random numbers.
    Raises InputError when the two map draft ids to different tokens.
    """
    corrected = result.config.correction_rank > 0
    (ours, our_map), (theirs, their_map) = _run(source, target, corrected), _run(result, target, corrected)
    if not torch.equal(our_map, their_map):
        raise InputError(f"{result.directory}: d2t is not the source's")
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    return Difference(float((ours - theirs).abs().max()), float(ours.abs().max()), float(same))


def _run(head: Head, target: Target | None, corrected: bool) -> tuple[Tensor, Tensor]:
    """Return ([K, V_d] logits, d2t [V_d]). The random input depends on the shapes alone."""
    drafter = drafter_of(head, target)
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, head.config.vocab_size, (ROWS,), generator=rng)
    aux = torch.randn(ROWS, head.config.fused_size, generator=rng)
    if not corrected:
        drafter.correction = None
    states = draft_states(drafter, DraftCache(), tokens, aux, DEPTHS, 0)
    return chain_logits(drafter, states, tokens, tokens[:DEPTHS]), drafter.d2t


@torch.no_grad()
def drafter_of(head: Head, target: Target | None) -> PEagleDrafter:
    """Load a head in float32; the target's embedding and lm_head, or random ones, stand in for those it lacks."""
    drafter = PEagleDrafter(head.config)
    missing = set(SHARED)
    state = drafter.state_dict()
    for name, tensor in checked_tensors(head.stored(), head.config, head.directory):
        state[name].copy_(tensor)
        missing.discard(name)
    for name in sorted(missing):
        state[name].copy_(_stand_in(name, expected_shapes(head.config)[name], target))
    return drafter


def _stand_in(name: str, shape: tuple[int, ...], target: Target | None) -> Tensor:
    theirs = None if target is None else target.tensor(name)
    if theirs is not None and tuple(theirs.shape) == shape:
        return theirs
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) / shape[-1] ** 0.5
