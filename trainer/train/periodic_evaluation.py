"""How good the drafter is by now: a small evaluation every eval.every steps that leaves the training run as it was.

The rows, prompts and elements are the same every time, so that the curve shows the drafter and nothing else. Nothing
here draws a random number: drafting is greedy, elements come from a generator of their own, dropout is off.
"""

from __future__ import annotations

import time

from trainer.data.packing import pack
from trainer.evaluation.evaluate import evaluate, prompts_of
from trainer.train.assemble import Run
from trainer.train.progress import Progress


class PeriodicEvaluation:
    """A small evaluation: called with the step, it writes to the progress output and TensorBoard."""

    def __init__(self, run: Run, progress: Progress) -> None:
        config, heldout = run.config, run.inputs.heldout
        self.run, self.progress = run, progress
        self.rows = pack(heldout, config.data.row_length)[: config.eval.every_rows]
        count = min(config.eval.every_prompts, config.eval.num_prompts)
        prompts = prompts_of(run.inputs.to_answer, count, config.eval.prompt_tokens)
        self.prompts = [prompt.to(config.device) for prompt in prompts]

    def __call__(self, step: int) -> None:
        start = time.perf_counter()
        run, drafter = self.run, self.run.drafter.eval()
        try:
            with run.state.weights.whole():
                result = evaluate(
                    run.config, run.inputs.model, drafter, run.hidden_states, self.rows, self.prompts,
                    run.inputs.end_ids,
                )  # fmt: skip
        finally:
            drafter.train()
        self.progress.evaluation(step, result, time.perf_counter() - start)
        self.progress.say("\n".join(f"step {step}, {line}" for line in result.lines()))
