"""From the drafter's logits to the K drafts of a request: its argmax, or sampled for rejection sampling.

With `--speculative-use-rejection-sampling` a draft is drawn from the drafter's own distribution q, and verification
accepts it with probability min(1, p/q), else samples from the residual max(p - q, 0): the output follows the target
whatever q is (Leviathan et al. 2023). The mask rows of one pass know nothing of each other's draws, so the q of slot k
is the same whatever was drawn at the slots before it: exactly what verification wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sglang.srt.speculative.spec_utils import sample_draft_proposal
from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """token_ids: int64[bs, K], target ids; probs: float32[bs, K, V], the q each id was drawn from, None if argmax."""

    token_ids: Tensor
    probs: Tensor | None = None


def propose_greedy(logits: Tensor, draft_to_target: Tensor | None) -> Proposal:
    """logits: [bs, K, V_d]; draft_to_target: int64[V_d], target ids of the draft vocabulary, None where equal."""
    return Proposal(_target_ids(logits.argmax(-1), draft_to_target))


def propose_sampled(
    logits: Tensor, draft_to_target: Tensor | None, sampling_info, known: Tensor, vocab_size: int
) -> Proposal:
    """Draw every draft at its request's temperature; greedy requests get the argmax.

    logits: [bs, K, V_d]; known: int64[bs], tokens each request has, which with the seed and the slot fixes the draw
    where seeds are in force; vocab_size: V of the target.
    """
    ids, probs = [], []
    for step in range(logits.shape[1]):
        q, _, token = sample_draft_proposal(
            logits[:, step],
            sampling_info.temperatures,
            sampling_info.top_ks,
            sampling_seed=sampling_info.sampling_seed,
            positions=known,
            draft_step=step,
        )
        ids.append(token[:, 0])
        probs.append(q)
    return Proposal(
        _target_ids(torch.stack(ids, 1), draft_to_target),
        _over_target_vocabulary(torch.stack(probs, 1), draft_to_target, vocab_size),
    )


def _target_ids(drafts: Tensor, draft_to_target: Tensor | None) -> Tensor:
    return drafts if draft_to_target is None else draft_to_target[drafts]


def _over_target_vocabulary(probs: Tensor, draft_to_target: Tensor | None, vocab_size: int) -> Tensor:
    """[bs, K, V_d] -> [bs, K, V], zero for tokens that the drafter cannot propose."""
    size = probs.shape[-1]
    if draft_to_target is None and size == vocab_size:
        return probs
    if draft_to_target is None:
        draft_to_target = torch.arange(size, device=probs.device)
    return probs.new_zeros(*probs.shape[:2], vocab_size).index_copy_(2, draft_to_target, probs)
