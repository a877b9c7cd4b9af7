"""From the drafter's logits to the K drafts of a request: its argmax, or sampled for rejection sampling.

With `--speculative-use-rejection-sampling` a draft is drawn from the drafter's own distribution q, and verification
accepts it with probability min(1, p/q), else samples from the residual max(p - q, 0): the output follows the target
whatever q is (Leviathan et al. 2023). The mask rows of one pass know nothing of each other's draws, so the q of slot k
is the same whatever was drawn at the slots before it: exactly what verification wants.

A head with a correction (`peagle_core.correction`) chooses its drafts one after the other, in the same pass's logits:
each row gets what the drafts before it add. Then q is that of the corrected row, given these drafts; a draft is
verified only where they stand, so this is what verification wants, too. What it drafts outright (`peagle_core.told`) is
not drawn: its q is certain of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from sglang.kernels.ops.speculative.row_argmax import row_argmax
from sglang.srt.speculative.spec_utils import sample_draft_proposal
from torch import Tensor

from peagle_core.told import RECENT, Matches


@dataclass(frozen=True)
class Proposal:
    """token_ids: int64[bs, K], target ids; probs: float32[bs, K, V_d], what they were drawn from, None if argmax.

    Of a draft that was not drawn but drafted outright, probs are zero.
    """

    token_ids: Tensor
    probs: Tensor | None = None


class Corrected(Protocol):
    """A drafter with a correction, as `drafter_model.PEagleForCausalLM` has it."""

    def embedded(self, token_ids: Tensor) -> Tensor: ...

    def correct(
        self, logits: Tensor, state: Tensor, told: Sequence[Tensor], found: Tensor, match: Tensor
    ) -> Tensor: ...


class Chain:
    """What makes each draft of one pass follow from those before it."""

    def __init__(
        self, model: Corrected, states: Tensor, text: Tensor, share: Callable[[Tensor], object] = lambda _: None
    ) -> None:
        """Begin before the first drafts.

        model: with a correction, `drafter_model.PEagleForCausalLM`; states: [bs, K, H], of the rows after the final
        norm; text: int64[bs, W], the tokens before the first drafts, of `Texts`; share: makes drawn ids int64[bs] the
        first rank's, in place.
        """
        self.model, self.states, self.text, self.share = model, states, text, share
        self.matches = _matches(text)
        # Of the last tokens so far, newest first, what the correction reads
        self.recent = deque([states.new_zeros(len(states), states.shape[-1])] * RECENT, maxlen=RECENT)

    def correct(self, row: Tensor, drafts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Correct the logits of the row behind these drafts, [bs, V_d], in place; to be called row by row.

        drafts: those before it, each int64[bs]. -> (the token found, int64[bs]; where it is the draft, whatever the
        logits are, bool[bs])
        """
        if drafts:
            self.matches.follow(drafts[-1])
        found, match = self.matches.best()
        newest = drafts[-1] if drafts else self.text[:, -1]
        newest, of_found = self.model.embedded(torch.cat([newest, found])).chunk(2)
        self.recent.appendleft(newest)
        told = [*self.recent, of_found]
        return found, self.model.correct(row, self.states[:, len(drafts)], told, found, match)


def _matches(text: Tensor) -> Matches:
    """Return what seeks the end of each chain in its text, int64[bs, W]; on a GPU in one launch a draft."""
    if text.is_cuda:
        from sglang_backend.kernels.chain import SoughtMatches

        return SoughtMatches(text)
    return Matches(text)


def propose_greedy(logits: Tensor, draft_to_target: Tensor | None, chain: Chain | None = None) -> Proposal:
    """Propose the argmax of each row; a chain corrects the logits in place.

    logits: [bs, K, V_d]; draft_to_target: int64[V_d], target ids of the draft vocabulary, None where equal.
    """
    if chain is None:
        return Proposal(_target_ids(_argmax(logits), draft_to_target))
    drafts: list[Tensor] = []
    for row in logits.unbind(1):
        found, outright = chain.correct(row, drafts)
        drafts.append(torch.where(outright, found, _target_ids(_argmax(row), draft_to_target)))
    return Proposal(torch.stack(drafts, 1))


def propose_sampled(
    logits: Tensor, draft_to_target: Tensor | None, sampling_info, known: Tensor, chain: Chain | None = None
) -> Proposal:
    """Draw every draft at its request's temperature; greedy requests get the argmax. A chain corrects in place.

    logits: [bs, K, V_d]; known: int64[bs], tokens each request has, which with the seed and the slot fixes the draw
    where seeds are in force.
    """
    if sampling_info.is_all_greedy:
        return propose_greedy(logits, draft_to_target, chain)
    if chain is None and sampling_info.sampling_seed is None:
        return Proposal(*_draw_at_once(logits, draft_to_target, sampling_info))
    return Proposal(*_draw_in_turn(logits, draft_to_target, sampling_info, known, chain))


def _draw_at_once(logits: Tensor, draft_to_target: Tensor | None, sampling_info) -> tuple[Tensor, Tensor]:
    """Draw all slots in one call. -> (target ids [bs, K], q [bs, K, V_d])."""
    bs, k, size = logits.shape
    probs, _, drafts = sample_draft_proposal(
        logits.reshape(bs * k, size),
        sampling_info.temperatures.repeat_interleave(k, 0),
        sampling_info.top_ks.repeat_interleave(k, 0),
    )
    return _target_ids(drafts.view(bs, k), draft_to_target), probs.view(bs, k, size)


def _draw_in_turn(
    logits: Tensor, draft_to_target: Tensor | None, sampling_info, known: Tensor, chain: Chain | None
) -> tuple[Tensor, Tensor]:
    """Draw slot by slot, for a seed draws by slot and a chain by the draft before. -> as `_draw_at_once`."""
    ids: list[Tensor] = []
    probs: list[Tensor] = []
    for step, row in enumerate(logits.unbind(1)):
        if chain is not None:
            found, outright = chain.correct(row, ids)
        q, _, token = sample_draft_proposal(
            row,
            sampling_info.temperatures,
            sampling_info.top_ks,
            sampling_seed=sampling_info.sampling_seed,
            positions=known,
            draft_step=step,
        )
        drafts = _target_ids(token[:, 0], draft_to_target)
        if chain is not None:
            drafts, q = torch.where(outright, found, drafts), q.masked_fill(outright[:, None], 0)
            chain.share(drafts)
        ids.append(drafts)
        probs.append(q)
    return torch.stack(ids, 1), torch.stack(probs, 1)


def _argmax(logits: Tensor) -> Tensor:
    """[..., V_d] -> int64[...], the first of equals. On a GPU SGLang's kernel: torch gives a row to one block."""
    if logits.is_cuda and logits.dtype == torch.float32:
        rows = logits if logits.dim() == 2 else logits.view(-1, logits.shape[-1])
        return row_argmax(rows).view(logits.shape[:-1])
    return logits.argmax(-1)


def _target_ids(drafts: Tensor, draft_to_target: Tensor | None) -> Tensor:
    return drafts if draft_to_target is None else draft_to_target[drafts]
