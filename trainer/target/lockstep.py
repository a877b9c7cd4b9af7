"""A target whose layers are sharded runs only when every process runs it: its layers are gathered from all of them.

Processes need different numbers of forward passes (rows of other lengths, drafts that are accepted or not). So before
each pass a process tells the others that it has work, and one that has none left runs along with a single token until
nobody has. Nobody needs to know beforehand how many passes there will be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from peagle_core.errors import InputError
from peagle_core.target import target_head
from trainer.parallel.processes import exchange

_target: PreTrainedModel | None = None
_idle = False


def keep_together(target: PreTrainedModel) -> None:
    """From now on every pass of this target is one pass of every process."""
    global _target
    _target = target
    target.register_forward_pre_hook(_announce, prepend=True)


@contextmanager
def apart() -> Iterator[None]:
    """Work of one process by itself: passes of the target, nothing else that all processes take part in.

    Every process must come here; those that are done wait. The error of one is everybody's.
    """
    if _target is not None:
        exchange(None)  # who failed before this says so here, not in the middle of a pass
    error: Exception | None = None
    try:
        yield
    except (InputError, OSError) as raised:
        error = raised
    if _target is not None:
        _run_along(_target)
    if error is not None:
        exchange(error)
        raise error
    exchange(None)


def _announce(*_: Any) -> None:
    if not _idle:
        dist.all_reduce(torch.ones((), dtype=torch.int32))


@torch.no_grad()
def _run_along(target: PreTrainedModel) -> None:
    global _idle
    token = torch.zeros(1, 1, dtype=torch.int64, device=target_head(target).device)
    _idle = True
    try:
        while True:
            working = torch.zeros((), dtype=torch.int32)
            dist.all_reduce(working)
            if not working:
                return
            target(input_ids=token, use_cache=False, logits_to_keep=1)
    finally:
        _idle = False
