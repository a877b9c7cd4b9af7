"""A SGLang plugin for tests: memory is never pinned. SGLang's LoRA code pins always, and only a CUDA driver can."""

from __future__ import annotations

import functools

import torch


def register() -> None:
    """Entry point `sglang.srt.plugins`."""
    torch.Tensor.pin_memory = lambda tensor, *_args, **_kwargs: tensor
    for name in ("arange", "empty", "tensor", "zeros"):
        setattr(torch, name, unpinned(getattr(torch, name)))


def unpinned(make):
    @functools.wraps(make)
    def made(*args, pin_memory=False, **kwargs):
        return make(*args, **kwargs)

    return made
