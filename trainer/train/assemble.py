"""From a configuration to a run that is ready for its first step: every part of it, made once and in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peagle_core.drafter import PEagleDrafter
from trainer.checkpoint.contract import make_contract
from trainer.checkpoint.train_state import TrainState
from trainer.config import RunConfig
from trainer.data.packing import PackedRow, pack
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.choose import open_states
from trainer.inputs import RunInputs, load_inputs
from trainer.loss_guard import LossGuard
from trainer.new_drafter import new_drafter
from trainer.parallel import processes
from trainer.parallel.drafter_weights import make_weights
from trainer.sampler import RowSampler, total_steps
from trainer.sizing.choose import settle, settle_parallel
from trainer.target.load import weight_bytes
from trainer.train.muon import iteration_dtype
from trainer.train.optimizer import make_optimizers, make_schedulers
from trainer.warm_start import adopt_head, warm_drafter


@dataclass(frozen=True)
class Run:
    """A training run. Only `state` changes while it goes on.

    config: `mode` and `parallel` settled; rows: the training documents, packed; hidden_states: what the target says
    about a row; contract: what the numbers of its checkpoints mean.
    """

    config: RunConfig
    inputs: RunInputs
    rows: Sequence[PackedRow]
    hidden_states: StateSource
    state: TrainState
    contract: dict[str, Any]

    @property
    def drafter(self) -> PEagleDrafter:
        return self.state.drafter


def open_run(config: RunConfig, resumed: Path | None = None) -> Run:
    """Load target and data and make everything else of a run, at step 0. Collective: every process must call it.

    resumed: the checkpoint that will be loaded into it, which then stands for drafter.init.

    Raises InputError, one sentence, for anything wrong with target, data, cached hidden states or sizes, and where
    processes would not start alike.
    """
    config = settle_parallel(adopt_head(config, resumed))
    inputs = open_inputs(config)
    rows = pack(inputs.train, config.data.row_length)
    if config.drafter.init is not None:
        drafter = warm_drafter(config, inputs, resumed)
    else:
        drafter = new_drafter(config, inputs.target, inputs.mask_token_id, inputs.train, inputs.essential)
    needed = {"data.train": inputs.train, "held-out": inputs.heldout}
    hidden_states = open_states(config, inputs, drafter.config.aux_layer_ids_for(inputs.num_target_layers), needed)
    config = settle(config, drafter, weight_bytes(hidden_states.target or inputs.target))
    state = _new_state(config, drafter, len(rows))
    contract = make_contract(config, drafter, rows)
    processes.check_same(contract, "the drafter, the settings or the data")
    return Run(config, inputs, rows, hidden_states, state, contract)


def open_inputs(config: RunConfig) -> RunInputs:
    """Load target and documents, the target whole only where its layers run in this process."""
    return load_inputs(config, whole=config.states.source == "in_process")


def _new_state(config: RunConfig, drafter: PEagleDrafter, num_rows: int) -> TrainState:
    weights = make_weights(drafter, config.parallel)
    optimizers = make_optimizers(drafter, config.optim, iteration_dtype(config.device, config.precision))
    steps = total_steps(num_rows, config.optim.rows_per_step, config.optim.epochs, config.optim.max_steps)
    return TrainState(
        drafter=drafter,
        weights=weights,
        optimizers=optimizers,
        schedulers=make_schedulers(optimizers, config.optim, steps),
        sampler=RowSampler(num_rows, config.seed),
        guard=LossGuard(),
        total_steps=steps,
    )
