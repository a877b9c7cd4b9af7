"""What changes while a drafter is trained, and therefore what a checkpoint has to hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from peagle_core.drafter import PEagleDrafter
from trainer.loss_guard import LossGuard
from trainer.parallel.drafter_weights import Weights
from trainer.sampler import RowSampler


@dataclass
class TrainState:
    """Everything that changes during training.

    weights: of the drafter, as they lie over the processes; step: optimizer steps done; tokens: seen since this run of
    the command began, by all processes.
    """

    drafter: PEagleDrafter
    weights: Weights
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[LambdaLR]
    sampler: RowSampler
    guard: LossGuard
    total_steps: int
    step: int = 0
    tokens: int = 0

    @property
    def learning_rate(self) -> float:
        return float(self.schedulers[0].get_last_lr()[0])

    def optimizer_state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """Return the moments that the optimizer of a parameter keeps for it: live, and empty before the first step."""
        (owner,) = (o for o in self.optimizers if any(p is parameter for g in o.param_groups for p in g["params"]))
        return owner.state[parameter]
