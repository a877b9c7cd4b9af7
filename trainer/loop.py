"""The training loop: rows -> states -> elements -> gradients -> one AdamW step, until the steps are done.

Weights and optimizer are fp32; bf16 is only a matter of autocast. All rows of an optimizer step share one denominator,
the number of elements they charge together, so that accumulation changes nothing but memory.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from peagle_core.cod import sample_elements
from peagle_core.drafter import PEagleDrafter
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.metrics import DraftMetrics
from peagle_core.training import Batch, charged_elements, loss_and_backward
from trainer.checkpoints import TrainState, save_checkpoint
from trainer.config import RunConfig
from trainer.data.packing import PackedRow
from trainer.optimizer import make_optimizers, make_schedulers
from trainer.progress import Progress
from trainer.sampler import RowSampler, total_steps
from trainer.states.base import StateSource

REMEDY = "the checkpoints before it are kept; start again with a lower optim.lr or another seed"


def new_state(config: RunConfig, drafter: PEagleDrafter, num_rows: int) -> TrainState:
    """Everything that changes during training, at step 0."""
    optimizers = make_optimizers(drafter, config.optim)
    steps = total_steps(num_rows, config.optim.rows_per_step, config.optim.epochs, config.optim.max_steps)
    return TrainState(
        drafter=drafter,
        optimizers=optimizers,
        schedulers=make_schedulers(optimizers, config.optim, steps),
        sampler=RowSampler(num_rows, config.seed),
        cod=torch.Generator().manual_seed(config.seed),
        total_steps=steps,
    )


def train(
    config: RunConfig,
    state: TrainState,
    rows: Sequence[PackedRow],
    states: StateSource,
    progress: Progress,
    checkpoints: Path,
    contract: dict[str, object],
) -> signal.Signals | None:
    """Run the remaining steps, updating `state`. Returns the signal that stopped it early, None when it finished.

    Checkpoints go to `checkpoints` every config.checkpoint_every steps, at the end, and on SIGINT or SIGTERM after
    the step under way. Raises InputError when the loss, the gradient or, before a checkpoint, a weight is not finite:
    the newest checkpoint is always good.
    """
    with _stop_signals() as received:
        while state.step < state.total_steps and not received:
            metrics, norm = train_step(config, state, rows, states)
            if metrics is not None:
                progress.step(state.step, metrics, norm, state.learning_rate, state.tokens)
            if state.step % config.checkpoint_every == 0 or state.step == state.total_steps or received:
                _check_weights(state)
                save_checkpoint(checkpoints, state, contract)
    return received[0] if received and state.step < state.total_steps else None


def train_step(
    config: RunConfig, state: TrainState, rows: Sequence[PackedRow], states: StateSource
) -> tuple[DraftMetrics | None, float]:
    """One optimizer step. Returns its counts (None where nothing was charged) and the gradient norm before clipping."""
    taken = state.sampler.take(config.optim.rows_per_step)
    work = [_prepare(config, state, rows[i], states) for i in taken]
    denominator = float(sum(charged.sum() for _, _, charged in work))
    metrics = None
    weights = config.loss.depth_weights
    depth_weights = None if weights is None else torch.tensor(weights, device=states.head.device)
    for batch, elements, charged in work:
        if not charged.any():
            continue
        with torch.autocast(batch.aux.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            counts = loss_and_backward(
                state.drafter,
                batch,
                elements,
                target_head=states.head,
                denominator=denominator,
                charged=charged,
                loss=config.loss.kind,
                depth_weights=depth_weights,
                **config.step_options(),
            )
        metrics = counts if metrics is None else metrics + counts
    parameters = [p for p in state.drafter.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.optim.max_grad_norm)) if parameters else 0.0
    if metrics is not None and not (torch.isfinite(metrics.loss_sum) and torch.isfinite(torch.tensor(norm))):
        raise InputError(
            f"step {state.step + 1} (rows {taken}): the loss is {metrics.loss} and the gradient norm {norm}; {REMEDY}"
        )
    for optimizer, scheduler in zip(state.optimizers, state.schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    state.step += 1
    state.tokens += sum(len(rows[i]) for i in taken)
    return metrics, norm


def _check_weights(state: TrainState) -> None:
    """A step with a finite gradient can still overflow a weight; such weights are never saved."""
    for name, parameter in state.drafter.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"step {state.step}: the weight {name} is not finite after it; {REMEDY}")


def _prepare(
    config: RunConfig, state: TrainState, row: PackedRow, states: StateSource
) -> tuple[Batch, Elements, Tensor]:
    batch = states(row)
    cod = config.drafter
    elements = sample_elements(
        row.loss_mask, row.doc_ids, cod.num_depths, cod.retention, cod.retention_min, state.cod
    ).to(batch.aux.device)
    return batch, elements, charged_elements(elements, batch, states.head, state.drafter.d2t)


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM instead of dying; a second SIGINT interrupts at once."""
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
