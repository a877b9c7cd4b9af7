"""The drafter loop along answers that are there: thousands of steps for the price of some training rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from tqdm import tqdm

from peagle_core.drafter import PEagleDrafter
from peagle_core.training import StepOptions, standing_drafts
from trainer.config import RunConfig
from trainer.data.packing import PackedRow
from trainer.evaluation.acceptance import Acceptance, summed
from trainer.hidden_states.base import StateSource
from trainer.parallel.processes import is_main, merged, mine
from trainer.target.sharded import collective_passes


@torch.no_grad()
def along_answers(
    config: RunConfig, drafter: PEagleDrafter, states: StateSource, rows: Sequence[PackedRow]
) -> list[Acceptance]:
    """Let the drafter loop go along the answers of packed rows, for every K of config.eval; no pass of the target.

    On the target's own greedy answers it is the loop itself, step by step, on other text what would be accepted if the
    target had written that. An answer is a run of generated tokens; its first is the target's own, as in serving.
    """
    numbers = config.eval.num_draft_tokens
    options = StepOptions(mode="stream" if config.mode == "stream" else "flat", attention=config.attention_backend)
    done: dict[int, list[list[list[int]]]] = {}
    with collective_passes(states.target):
        for i in tqdm(
            mine(rows), desc="along answers", unit="row", leave=False, disable=len(rows) < 2 or not is_main()
        ):
            row = rows[i]
            batch = states(row)
            standing = standing_drafts(drafter, batch, max(numbers), states.head, options).tolist()
            done[i] = [[_steps_along(standing[first:last], k) for first, last in _answers(row)] for k in numbers]
    of_rows = merged(done)
    found = []
    for number, k in enumerate(numbers):
        steps = [steps for row in of_rows for steps in row[number]]
        found.append(summed(k, steps, sum(1 + sum(lengths) for lengths in steps)))
    return found


def _answers(row: PackedRow) -> list[tuple[int, int]]:
    """Return [first, last) of the places of each answer: where a pass ends that drafts more of it.

    An answer is a run of generated tokens behind a prompt; the first place is the prompt's last slot.
    """
    change = (row.loss_mask[1:] != row.loss_mask[:-1]) | (row.doc_ids[1:] != row.doc_ids[:-1])
    borders = [0, *(change.nonzero().squeeze(-1) + 1).tolist(), len(row)]
    answers = [
        (first, last)
        for first, last in pairwise(borders)
        if row.loss_mask[first] and first > 0 and row.doc_ids[first - 1] == row.doc_ids[first] and last - first > 1
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
