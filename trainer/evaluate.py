"""What a head is worth: a real drafter loop on held-out prompts, and its accuracy by depth on held-out text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import Speculation, speculate
from peagle_core.metrics import DraftMetrics
from peagle_core.training import loss_and_backward
from trainer.config import RunConfig
from trainer.data.documents import Document
from trainer.data.packing import PackedRow
from trainer.hidden_states.base import StateSource
from trainer.parallel.processes import is_main, merged, mine, sum_metrics
from trainer.sampler import row_seeds
from trainer.target.context import room_for_answer
from trainer.target.sharded import collective_passes

# Held-out elements are drawn alike in every evaluation, whatever the run's seed.
COD_SEED = 1


@dataclass(frozen=True)
class Acceptance:
    """Greedy speculation at one K.

    accept_length: tokens per target pass, the bonus token included (1 to K+1); standard_error: of it, the prompts being
    the sample, None for a single one; accept_per_position[j]: share of steps in which drafts 1..j+1 all stood;
    per_prompt: steps and tokens of each prompt.
    """

    num_draft_tokens: int
    accept_length: float
    standard_error: float | None
    accept_per_position: list[float]
    prompts: int
    new_tokens: int
    per_prompt: list[tuple[int, int]]


@dataclass(frozen=True)
class Evaluation:
    """loss, accuracy_per_depth, expected_accept_length: teacher-forced; None or empty without held-out rows."""

    loss: float | None
    accuracy_per_depth: list[float]
    expected_accept_length: float | None
    acceptance: list[Acceptance]

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
        for a in self.acceptance:
            positions = ", ".join(f"{100 * p:.0f}" for p in a.accept_per_position)
            error = "" if a.standard_error is None else f" +- {a.standard_error:.2f}"
            found.append(
                f"drafter loop, K = {a.num_draft_tokens}: acceptance length {a.accept_length:.2f}{error} "
                f"over {a.prompts} prompts, {a.new_tokens} tokens; accepted by position {positions} %"
            )
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
    forced = teacher_forced(config, drafter, states, rows)
    acceptance = []
    if target is not None and prompts:
        for k in config.eval.num_draft_tokens:
            acceptance.append(measure_acceptance(target, drafter, prompts, k, config.eval.max_new_tokens, end_ids))
    if forced is None:
        return Evaluation(None, [], None, acceptance)
    return Evaluation(forced.loss, forced.accuracy, forced.expected_accept_length, acceptance)


def teacher_forced(
    config: RunConfig, drafter: PEagleDrafter, states: StateSource, rows: Sequence[PackedRow]
) -> DraftMetrics | None:
    """Sum DraftMetrics over all rows with a fixed draw of elements; None when there are no rows."""
    cod = config.drafter
    depths = drafter.config.num_depths or cod.num_depths
    total = None
    with collective_passes(states.target):
        for i in tqdm(
            mine(rows), desc="held-out rows", unit="row", leave=False, disable=len(rows) < 2 or not is_main()
        ):
            row = rows[i]
            batch = states(row)
            generator = torch.Generator().manual_seed(row_seeds(COD_SEED, i)[0])
            elements = sample_elements(row.loss_mask, row.doc_ids, depths, cod.retention, cod.retention_min, generator)
            elements = elements.to(states.head.device)
            counts = loss_and_backward(
                drafter,
                batch,
                elements,
                "stream" if config.mode == "stream" else "flat",
                target_head=states.head,
                loss=config.loss.kind,
                attention=config.attention_backend,
            )
            total = counts if total is None else total + counts
    return sum_metrics(total)


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
    lengths = [length for steps in of_prompts for length in steps]
    per_prompt = [(len(steps), sum(steps)) for steps in of_prompts]
    new_tokens = sum(len(result.output_ids) for result in results)
    steps = max(1, len(lengths))
    return Acceptance(
        num_draft_tokens=num_draft_tokens,
        accept_length=sum(lengths) / steps,
        standard_error=standard_error(per_prompt),
        accept_per_position=[sum(n > j for n in lengths) / steps for j in range(1, num_draft_tokens + 1)],
        prompts=len(prompts),
        new_tokens=new_tokens,
        per_prompt=per_prompt,
    )


def lengths_within_turn(result: Speculation, end_ids: frozenset[int]) -> list[int]:
    """Return the accept lengths without what the last step accepted behind the end of the turn, which is not served."""
    lengths, tokens = list(result.accept_lengths), result.output_ids
    if lengths and tokens[-1] in end_ids:
        lengths[-1] -= sum(lengths) - (len(tokens) - 1)  # the first token is the target's own
    return lengths


def standard_error(per_prompt: Sequence[tuple[int, int]]) -> float | None:
    """Return the standard error of tokens per step when the prompts are the sample: steps of one are not independent.

    per_prompt: steps and tokens of each. The ratio estimator's error (Cochran 1977, section 2.11).
    """
    prompts, steps, tokens = len(per_prompt), sum(s for s, _ in per_prompt), sum(t for _, t in per_prompt)
    if prompts < 2 or not steps:
        return None
    squares = sum((t - tokens / steps * s) ** 2 for s, t in per_prompt)
    return math.sqrt(squares * prompts / (prompts - 1)) / steps


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
