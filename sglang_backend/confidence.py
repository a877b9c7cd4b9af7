"""K at run time by the drafter's own confidence: of the drafts at hand, those that are likely to stand are verified.

The one pass always drafts the largest K of the table, at no cost for another mask row. A draft's confidence is the
probability that it and all before it stand, as the drafter says: the product of the probabilities that it gave them.
Verifying one more draft costs a row of every request of the batch, and gives as many tokens as the mean of their
confidences. So the drafts up to the last with a mean of `least` or more are verified, in the next larger K that
the table has.
"""

from __future__ import annotations

import json

from sglang.srt.speculative.adaptive_spec_params import AdaptiveSpeculativeParams
from torch import Tensor

KEY = "confidence"  # in the table of --speculative-adaptive-config, beside SGLang's own keys


def least_confidence(spec) -> float | None:
    """Return `least`, None where K does not follow confidence. spec: SGLang's server arguments, or their view."""
    if not spec.speculative_adaptive:
        return None
    with open(spec.speculative_adaptive_config) as file:
        return json.load(file).get(KEY)


def confidences(logits: Tensor, outright: Tensor | None = None) -> Tensor:
    """Return the confidence of each draft, float32[bs, K].

    logits: [bs, K, V_d], each draft their argmax, but where outright, bool[bs, K], has it from elsewhere: there no
    probability is known, and the draft counts as likely as those before it.
    """
    logits = logits.float()
    certainty = logits.amax(-1) - logits.logsumexp(-1)
    if outright is not None:
        certainty = certainty.masked_fill(outright, 0)
    return certainty.cumsum(1).exp()


class ConfidentSteps(AdaptiveSpeculativeParams):
    """SGLang's policy object, its candidates per batch size kept, its choice by what was accepted lately replaced."""

    def __init__(self, initial_steps: int, cfg_path: str, least: float) -> None:
        super().__init__(initial_steps, cfg_path)
        self.least = least
        self.wanted = initial_steps

    def look_at(self, confidence: Tensor) -> None:
        """Note how many drafts are worth it. confidence: float32[bs, K], of the drafts that wait to be verified."""
        self.wanted = int((confidence.mean(0) >= self.least).sum())  # the step's one wait for the device

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Return K of the step: the smallest candidate with all drafts that are wanted, else the largest."""
        candidates = self._route(batch_size).candidate_steps
        return next((k for k in candidates if k >= self.wanted), candidates[-1])

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> None:
        """Change nothing: what was accepted before says less than the drafts at hand."""
