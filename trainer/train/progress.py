"""What one sees while training: a progress bar, and the same numbers as TensorBoard scalars."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from peagle_core.metrics import DraftMetrics
from trainer.evaluation.evaluate import Evaluation
from trainer.parallel.processes import is_main


class Progress:
    """Counts add up over log_every steps before they are divided, so every number is a mean over elements."""

    def __init__(self, log_dir: Path, total_steps: int, first_step: int, log_every: int) -> None:
        self.log_every = log_every
        self.last_step = total_steps
        self.pending: DraftMetrics | None = None
        self.bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True)
        self.writer = SummaryWriter(str(log_dir), purge_step=first_step or None) if is_main() else None
        self.since = time.perf_counter(), 0, first_step  # time, tokens and step of the last report

    def step(self, step: int, metrics: DraftMetrics, grad_norm: float, lr: float, tokens: int, peak: int) -> None:
        """Take in one optimizer step; every log_every steps show and write what they make together.

        tokens: seen since this run of the command began; peak: bytes, of the process that used most.
        """
        self.pending = metrics if self.pending is None else self.pending + metrics
        self.bar.update(step - self.bar.n)
        if step % self.log_every and step != self.last_step:
            return
        seen, self.pending = self.pending, None
        (then, tokens_then, step_then), self.since = self.since, (time.perf_counter(), tokens, step)
        seconds = self.since[0] - then
        accuracy = " ".join(f"{100 * a:.0f}" for a in seen.accuracy)
        accept = seen.expected_accept_length
        self.bar.set_postfix_str(f"loss {seen.loss:.3f}, accuracy {accuracy} %, expected acceptance {accept:.2f}")
        scalars = {
            "train/loss": seen.loss,
            "train/expected_accept_length": seen.expected_accept_length,
            "train/grad_norm": grad_norm,
            "train/lr": lr,
            "throughput/tokens_per_second": (tokens - tokens_then) / seconds,
            "throughput/charged_elements_per_second": float(seen.total.sum()) / seconds,
            "throughput/seconds_per_step": seconds / (step - step_then),
            "memory/peak_gib": peak / 2**30,
            **{f"train/accuracy_depth_{d}": a for d, a in enumerate(seen.accuracy)},
        }
        self._write(scalars, step)

    def evaluation(self, step: int, result: Evaluation, seconds: float = 0.0) -> None:
        """Write the numbers of an evaluation; the seconds it took do not count as training."""
        scalars = {f"eval/accuracy_depth_{d}": a for d, a in enumerate(result.accuracy_per_depth)}
        if result.loss is not None and result.expected_accept_length is not None:
            scalars |= {"eval/loss": result.loss, "eval/expected_accept_length": result.expected_accept_length}
        scalars |= {f"eval/accept_length_k{a.num_draft_tokens}": a.accept_length for a in result.acceptance}
        for a in result.acceptance_on_text:
            scalars[f"eval/accept_length_on_text_k{a.num_draft_tokens}"] = a.accept_length
        self._write(scalars, step)
        then, tokens, step_then = self.since
        self.since = then + seconds, tokens, step_then

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text)

    def _write(self, scalars: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def peak_bytes() -> int:
    """Return the most memory this process has used so far: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
