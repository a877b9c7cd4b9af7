"""Acceptance of the drafter loop: what is counted, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


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

    def line(self, what: str) -> str:
        """Return what people read. what: "prompts" or "answers"."""
        positions = ", ".join(f"{100 * p:.0f}" for p in self.accept_per_position)
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2f}"
        return (
            f"K = {self.num_draft_tokens}: acceptance length {self.accept_length:.2f}{error} over {self.prompts} "
            f"{what}, {self.new_tokens} tokens; accepted by position {positions} %"
        )


def summed(num_draft_tokens: int, of_prompts: Sequence[Sequence[int]], new_tokens: int) -> Acceptance:
    """Sum up the loop at one K. of_prompts: for each the tokens of its steps."""
    lengths = [length for steps in of_prompts for length in steps]
    per_prompt = [(len(steps), sum(steps)) for steps in of_prompts]
    steps = max(1, len(lengths))
    return Acceptance(
        num_draft_tokens=num_draft_tokens,
        accept_length=sum(lengths) / steps,
        standard_error=standard_error(per_prompt),
        accept_per_position=[sum(n > j for n in lengths) / steps for j in range(1, num_draft_tokens + 1)],
        prompts=len(of_prompts),
        new_tokens=new_tokens,
        per_prompt=per_prompt,
    )


def standard_error(per_prompt: Sequence[tuple[int, int]]) -> float | None:
    """Return the standard error of tokens per step when the prompts are the sample: steps of one are not independent.

    per_prompt: steps and tokens of each. The ratio estimator's error (Cochran 1977, section 2.11).
    """
    prompts, steps, tokens = len(per_prompt), sum(s for s, _ in per_prompt), sum(t for _, t in per_prompt)
    if prompts < 2 or not steps:
        return None
    squares = sum((t - tokens / steps * s) ** 2 for s, t in per_prompt)
    return math.sqrt(squares * prompts / (prompts - 1)) / steps
