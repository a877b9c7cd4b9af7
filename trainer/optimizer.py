"""AdamW and its learning-rate schedule for a drafter."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from trainer.config import OptimConfig


def make_optimizer(drafter: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Weight decay on the matrices only: not on norms, the embedding or mask_hidden."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in drafter.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() == 2 and not name.startswith("embed_tokens")
            (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def make_scheduler(optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> LambdaLR:
    """Linear warm-up, then linear or cosine decay to zero at total_steps."""
    warmup = math.ceil(config.warmup_ratio * total_steps)
    return get_scheduler(config.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
