"""Triton kernels. Imported only where they run: on a CUDA device, or on a CPU under TRITON_INTERPRET=1 in tests."""

from __future__ import annotations

import os

import torch


def runs_on(device: torch.device) -> bool:
    """Return whether Triton kernels can run on tensors of this device."""
    if device.type == "cuda":
        return torch.version.cuda is not None or torch.version.hip is not None
    return os.environ.get("TRITON_INTERPRET") == "1"
