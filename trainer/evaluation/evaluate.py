"""What a head is worth: the drafter loop on held-out prompts and along held-out answers, its accuracy by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import Speculation, speculate
from peagle_core.metrics import DraftMetrics
from peagle_core.training import StepOptions, loss_and_backward
from trainer.config import RunConfig
from trainer.data.documents import Document
from trainer.data.packing import PackedRow
from trainer.evaluation.acceptance import Acceptance, summed
from trainer.evaluation.along_answers import along_answers, steps_along_answers
from trainer.hidden_states.base import StateSource
from trainer.parallel.processes import is_main, merged, mine, sum_metrics
from trainer.sampler import row_seeds
from trainer.target.context import room_for_answer
from trainer.target.sharded import collective_passes

# Held-out elements are drawn alike in every evaluation, whatever the run's seed.
COD_SEED = 1


@dataclass(frozen=True)
class Evaluation:
    """What was measured. acceptance: the drafter loop; empty where the target is not at hand.

    loss, accuracy_per_depth, expected_accept_length: teacher-forced; None or empty without held-out rows. The last is
    the mean over all places of the text. acceptance_on_text: of the loop along the held-out answers, which visits a
    place behind a refused draft more often, so it is lower.
    """

    loss: float | None
    accuracy_per_depth: list[float]
    expected_accept_length: float | None
    acceptance: list[Acceptance]
    acceptance_on_text: list[Acceptance] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def lines(self) -> list[str]:
        """Return what people read, a line for the text and one for each K."""
        found = []
        if self.loss is not None:
            by_depth = ", ".join(f"{100 * a:.1f}" for a in self.accuracy_per_depth)
            found.append(
                f"held-out text: loss {self.loss:.3f}, accuracy by depth {by_depth} %, "
                f"expected acceptance length {self.expected_accept_length:.2f} (teacher-forced)"
            )
        found += [f"drafter loop, {a.line('prompts')}" for a in self.acceptance]
        found += [f"along the held-out answers, {a.line('answers')}" for a in self.acceptance_on_text]
        return found


@torch.no_grad()
def evaluate(
    config: RunConfig,
    target: PreTrainedModel | None,
    drafter: PEagleDrafter,
    states: StateSource,
    rows: Sequence[PackedRow],
    prompts: Sequence[Tensor],
    end_ids: frozenset[int],
) -> Evaluation:
    """Measure a drafter, which must be float32 on the target's device, on held-out rows and prompts.

    rows: packed; prompts: int64[n] each; target None: no drafter loop; end_ids: each ends an
    answer.
    """
    forced, on_text = held_out_text(config, drafter, states, rows)
    acceptance = []
    if target is not None and prompts:
        for k in config.eval.num_draft_tokens:
            acceptance.append(measure_acceptance(target, drafter, prompts, k, config.eval.max_new_tokens, end_ids))
    if forced is None:
        return Evaluation(None, [], None, acceptance)
    return Evaluation(forced.loss, forced.accuracy, forced.expected_accept_length, acceptance, on_text)


@torch.no_grad()
def held_out_text(
    config: RunConfig, drafter: PEagleDrafter, states: StateSource, rows: Sequence[PackedRow]
) -> tuple[DraftMetrics | None, list[Acceptance]]:
    """Measure packed rows: counts with a fixed draw of elements, and the loop along their answers for every K.

    The target's states of a row are asked for once. (None, []) when there are no rows.
    """
    cod = config.drafter
    depths = drafter.config.num_depths or cod.num_depths
    mode = "stream" if config.mode == "stream" else "flat"
    options = StepOptions(mode=mode, loss=config.loss.kind, attention=config.attention_backend)
    total, along = None, {}
    with collective_passes(states.target):
        for i in tqdm(
            mine(rows), desc="held-out rows", unit="row", leave=False, disable=len(rows) < 2 or not is_main()
        ):
            row = rows[i]
            batch = states(row)
            generator = torch.Generator().manual_seed(row_seeds(COD_SEED, i)[0])
            elements = sample_elements(row.loss_mask, row.doc_ids, depths, cod.retention, cod.retention_min, generator)
            elements = elements.to(states.head.device)
            counts = loss_and_backward(drafter, batch, elements, target_head=states.head, options=options)
            total = counts if total is None else total + counts
            along[i] = steps_along_answers(drafter, batch, states.head, config.eval.num_draft_tokens, options)
    counted, steps = sum_metrics(total), merged(along)
    return counted, along_answers(steps, config.eval.num_draft_tokens) if steps else []


def measure_acceptance(
    target: PreTrainedModel,
    drafter: PEagleDrafter,
    prompts: Sequence[Tensor],
    num_draft_tokens: int,
    max_new_tokens: int,
    end_ids: frozenset[int] = frozenset(),
) -> Acceptance:
    """Draft greedily for every prompt (`peagle_core.generate.speculate`); steps of all prompts weigh alike.

    end_ids: each ends an answer, and what is accepted behind it does not count. Prompts that leave no room for a step
    within the target's context are left out.
    """
    room = [room_for_answer(target.config, len(prompt), num_draft_tokens, max_new_tokens) for prompt in prompts]
    prompts = [prompt for prompt, tokens in zip(prompts, room, strict=True) if tokens > 1]
    room = [tokens for tokens in room if tokens > 1]
    done: dict[int, Speculation] = {}
    with collective_passes(target):
        for i in tqdm(mine(prompts), desc=f"drafting, K={num_draft_tokens}", unit="prompt", leave=False):
            done[i] = speculate(target, drafter, prompts[i], num_draft_tokens, room[i], eos_token_id=end_ids)
    results = merged(done)
    of_prompts = [lengths_within_turn(result, end_ids) for result in results]
    return summed(num_draft_tokens, of_prompts, sum(len(result.output_ids) for result in results))


def lengths_within_turn(result: Speculation, end_ids: frozenset[int]) -> list[int]:
    """Return the accept lengths without what the last step accepted behind the end of the turn, which is not served."""
    lengths, tokens = list(result.accept_lengths), result.output_ids
    if lengths and tokens[-1] in end_ids:
        lengths[-1] -= sum(lengths) - (len(tokens) - 1)  # the first token is the target's own
    return lengths


def prompts_of(documents: Sequence[Document], count: int, prompt_tokens: int) -> list[Tensor]:
    """Return the first `count` prompts.

    A prompt is a document of which nothing was generated, what stands before the first generated token of another, or
    the first prompt_tokens of a running text (generated from the start). Documents too short for that have none.
    """
    prompts = []
    for document in documents:
        if document.is_prompt:
            prompts.append(document.input_ids)
            continue
        first = int(document.loss_mask.long().argmax())
        length = first if first > 1 else prompt_tokens
        if length < len(document):
            prompts.append(document.input_ids[:length])
    return prompts[:count]
