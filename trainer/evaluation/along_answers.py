"""The drafter loop along answers that are there: thousands of steps for the price of some training rows.

On the target's own greedy answers it is the loop itself, step by step, on other text what would be accepted if the
target had written that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from peagle_core.drafter import PEagleDrafter
from peagle_core.training import Batch, StepOptions, standing_drafts
from trainer.evaluation.acceptance import Acceptance, summed

Steps = list[int]  # tokens of each step along one answer


def steps_along_answers(
    drafter: PEagleDrafter, batch: Batch, target_head: Tensor, numbers: Sequence[int], options: StepOptions
) -> list[list[Steps]]:
    """Let the loop go along the answers of a packed row; return for every K in `numbers` the steps of each answer.

    target_head: [V, H_t]. No pass of the target.
    """
    standing = standing_drafts(drafter, batch, max(numbers), target_head, options).tolist()
    answers = _answers(batch.loss_mask, batch.doc_ids)
    return [[_steps_along(standing[first:last], k) for first, last in answers] for k in numbers]


def along_answers(rows: Sequence[list[list[Steps]]], numbers: Sequence[int]) -> list[Acceptance]:
    """Sum up the rows' `steps_along_answers`, one Acceptance for every K."""
    found = []
    for number, k in enumerate(numbers):
        of_answers = [steps for row in rows for steps in row[number]]
        found.append(summed(k, of_answers, sum(1 + sum(steps) for steps in of_answers)))
    return found


def _answers(loss_mask: Tensor, doc_ids: Tensor) -> list[tuple[int, int]]:
    """Return [first, last) of the places of each answer: where a pass ends that drafts more of it.

    An answer is a run of generated tokens behind a prompt; its first is the target's own, as in serving, and the first
    place is the prompt's last slot.
    """
    change = (loss_mask[1:] != loss_mask[:-1]) | (doc_ids[1:] != doc_ids[:-1])
    borders = [0, *(change.nonzero().squeeze(-1) + 1).tolist(), len(loss_mask)]
    answers = [
        (first, last)
        for first, last in pairwise(borders)
        if loss_mask[first] and first > 0 and doc_ids[first - 1] == doc_ids[first] and last - first > 1
    ]
    return [(first - 1, last - 2) for first, last in answers]


def _steps_along(standing: Sequence[int], num_draft_tokens: int) -> list[int]:
    """Return the tokens of each step. standing: for each place of an answer but its last, the drafts that stand."""
    steps, at = [], 0
    while at < len(standing):
        length = min(1 + min(standing[at], num_draft_tokens), len(standing) - at)
        steps.append(length)
        at += length
    return steps
