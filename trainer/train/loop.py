"""The training loop: rows -> states -> elements -> gradients -> one AdamW step, until the steps are done.

Weights and optimizer are fp32; bf16 is only a matter of autocast. The rows of an optimizer step are divided over the
processes and share one denominator, the number of elements they charge together. Every random number of a row follows
from where the row stands in the stream. So neither accumulation nor the number of processes changes what is learned.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.metrics import DraftMetrics
from peagle_core.training import Batch, charged_elements, loss_and_backward
from trainer.checkpoint.checkpoints import save_checkpoint
from trainer.checkpoint.train_state import TrainState
from trainer.config import RunConfig
from trainer.data.packing import PackedRow
from trainer.parallel import processes
from trainer.parallel.drafter_weights import clip_gradients, local
from trainer.sampler import row_seeds
from trainer.target.sharded import collective_passes
from trainer.train.assemble import Run
from trainer.train.progress import Progress, peak_bytes

REMEDY = "the checkpoints before it are kept; start again with a lower optim.lr or another seed"


def train(run: Run, progress: Progress, evaluate: Callable[[int], None] | None = None) -> signal.Signals | None:
    """Run the remaining steps, updating `run.state`. Returns the signal that stopped it early, None when it finished.

    evaluate: called with the step every config.eval.every steps but the last; it must leave the state alone.

    Checkpoints are saved every config.checkpoint_every steps, at the end, and on SIGINT or SIGTERM (whichever process
    gets it) after the step under way. Raises InputError when the loss, the gradient or, before a checkpoint, a weight
    is not finite, and when the loss has climbed for good: a checkpoint from before that is always kept.
    """
    config, state = run.config, run.state
    stop: signal.Signals | None = None
    with _stop_signals() as received:
        while state.step < state.total_steps and not stop:
            metrics, norm = train_step(run)
            notes = processes.exchange((received[:1], peak_bytes()))
            stop = next((signals[0] for signals, _ in notes if signals), None)
            if metrics is not None:
                peak = max(used for _, used in notes)
                progress.step(state.step, metrics, norm, state.learning_rate, state.tokens, peak)
                state.guard.add(metrics.loss)
            if evaluate and _is_due(config.eval.every, state) and not stop:
                evaluate(state.step)
            if state.step % config.checkpoint_every == 0 or state.step == state.total_steps or stop:
                _check_weights(state)
                save_checkpoint(config.checkpoints, state, run.contract)
            if state.guard.diverged:
                raise processes.everywhere(
                    f"step {state.step}: the loss has been far above its best for {state.guard.climbing} steps "
                    f"({state.guard.now:.3g} after {state.guard.best:.3g}); {REMEDY}"
                )
    return stop if state.step < state.total_steps else None


def _is_due(every: int | None, state: TrainState) -> bool:
    return every is not None and state.step % every == 0 and state.step < state.total_steps


def train_step(run: Run) -> tuple[DraftMetrics | None, float]:
    """Take one optimizer step of all processes.

    Returns their counts together (None where nothing was charged) and the gradient norm before clipping.
    """
    config, state = run.config, run.state
    first = state.sampler.position
    taken = state.sampler.take(config.optim.rows_per_step)
    with collective_passes(run.hidden_states.target):
        work = [make_work(run, run.rows[taken[i]], first + i) for i in processes.mine(taken)]
    charged, tokens = (int(sum(row.charged.sum() for row in work)), sum(len(row.batch.input_ids) for row in work))
    shares = processes.exchange((charged, tokens))
    denominator = float(sum(charged for charged, _ in shares))
    metrics, norm = None, 0.0
    if denominator:
        with state.weights.step():
            for row in work:
                if row.charged.any():
                    counts = backward(config, state.drafter, row, run.hidden_states.head, denominator)
                    metrics = counts if metrics is None else metrics + counts
        metrics = processes.sum_metrics(metrics)
        norm = clip_gradients(state.drafter, config.optim.max_grad_norm)
    if metrics is not None and not (torch.isfinite(metrics.loss_sum) and torch.isfinite(torch.tensor(norm))):
        raise processes.everywhere(
            f"step {state.step + 1} (rows {taken}): the loss is {metrics.loss} and the gradient norm {norm}; {REMEDY}"
        )
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    state.step += 1
    state.tokens += sum(tokens for _, tokens in shares)
    return metrics, norm


@dataclass(frozen=True)
class Work:
    """One row of a step with everything its passes need.

    elements: N; charged: bool[N]; seed: of whatever is random in the passes.
    """

    batch: Batch
    elements: Elements
    charged: Tensor
    seed: int


def make_work(run: Run, row: PackedRow, position: int) -> Work:
    """Get a row's hidden states and draw its elements. position: of the row in the stream of rows."""
    of_elements, of_passes = row_seeds(run.config.seed, position)
    batch = run.hidden_states(row)
    cod, generator = run.config.drafter, torch.Generator().manual_seed(of_elements)
    elements = sample_elements(
        row.loss_mask, row.doc_ids, cod.num_depths, cod.retention, cod.retention_min, generator
    ).to(batch.aux.device)
    charged = charged_elements(elements, batch, run.hidden_states.head, run.drafter.d2t)
    return Work(batch, elements, charged, of_passes)


def backward(
    config: RunConfig, drafter: PEagleDrafter, work: Work, target_head: Tensor, denominator: float
) -> DraftMetrics:
    """Add the gradients of one row. target_head: [V, H_t]; denominator: charged elements of the whole step."""
    torch.manual_seed(work.seed)  # dropout, in the one hidden-state design that has it
    with torch.autocast(work.batch.aux.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return loss_and_backward(
            drafter,
            work.batch,
            work.elements,
            target_head=target_head,
            denominator=denominator,
            charged=work.charged,
            options=config.step_options(),
        )


def _check_weights(state: TrainState) -> None:
    """Raise InputError where a weight is not finite: a finite gradient can overflow one, which must never be saved."""
    spoilt = [name for name, p in state.drafter.named_parameters() if not torch.isfinite(local(p)).all()]
    if names := [name for found in processes.exchange(spoilt[:1]) for name in found]:
        raise processes.everywhere(f"step {state.step}: the weight {names[0]} is not finite after it; {REMEDY}")


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGINT and SIGTERM instead of dying; a second SIGINT interrupts at once."""
    received: list[signal.Signals] = []

    def note(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
