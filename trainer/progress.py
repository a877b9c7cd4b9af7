"""What one sees while training: a progress bar, and the same numbers as TensorBoard scalars."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from peagle_core.metrics import DraftMetrics


class Progress:
    """Counts add up over log_every steps before they are divided, so every number is a mean over elements."""

    def __init__(self, log_dir: Path, total_steps: int, first_step: int, log_every: int) -> None:
        self.log_every = log_every
        self.last_step = total_steps
        self.pending: DraftMetrics | None = None
        self.bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True)
        self.writer = SummaryWriter(str(log_dir), purge_step=first_step or None)

    def step(self, step: int, metrics: DraftMetrics, grad_norm: float, lr: float) -> None:
        self.pending = metrics if self.pending is None else self.pending + metrics
        self.bar.update(step - self.bar.n)
        if step % self.log_every and step != self.last_step:
            return
        seen, self.pending = self.pending, None
        accuracy = " ".join(f"{100 * a:.0f}" for a in seen.accuracy)
        accept = seen.expected_accept_length
        self.bar.set_postfix_str(f"loss {seen.loss:.3f}, accuracy {accuracy} %, expected acceptance {accept:.2f}")
        scalars = {
            "train/loss": seen.loss,
            "train/expected_accept_length": seen.expected_accept_length,
            "train/grad_norm": grad_norm,
            "train/lr": lr,
            **{f"train/accuracy_depth_{d}": a for d, a in enumerate(seen.accuracy)},
        }
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.bar.close()
        self.writer.close()
