"""The optimizers of a drafter and their learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from trainer.config.sections import OptimConfig
from trainer.train.muon import Muon


def make_optimizers(drafter: nn.Module, config: OptimConfig, iterate_in: torch.dtype) -> list[Optimizer]:
    """Make AdamW for everything, or Muon for the layers' matrices and fc beside AdamW for the rest.

    Weight decay on matrices only: not on norms, embeddings or mask_hidden. Muon's updates are scaled to the size of
    AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both. iterate_in: of Muon,
    `trainer.train.muon.iteration_dtype`.
    """
    inner: list[nn.Parameter] = []
    head: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in drafter.named_parameters():
        if not parameter.requires_grad:
            continue
        if "lm_head" in name:  # the correction's too
            head.append(parameter)
        elif parameter.dim() == 2 and "embed" not in name:
            inner.append(parameter)
        else:
            plain.append(parameter)
    if config.optimizer == "muon":
        muon = Muon(inner, iterate_in, lr=config.lr, weight_decay=config.weight_decay)
        return [muon, _adamw(head, plain, config)]
    return [_adamw(inner + head, plain, config)]


def _adamw(decayed: list[nn.Parameter], plain: list[nn.Parameter], config: OptimConfig) -> AdamW:
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW(groups, lr=config.lr, betas=config.betas)


def make_schedulers(optimizers: list[Optimizer], config: OptimConfig, total_steps: int) -> list[LambdaLR]:
    """Make the schedules of the rates: linear warm-up, then linear or cosine decay to zero at total_steps."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    return [
        get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
        for optimizer in optimizers
    ]
