"""Targets with experts in MXFP4 (gpt-oss as published) on the CPU platform: unpacked to bf16 as they are loaded.

SGLang has this path for its own CPU engine, where its names and flags say that the device is one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(tensor: Tensor, scale: Tensor, target_dtype: torch.dtype, axis: int) -> Tensor:
    """REPLACE triton_kernels' upcast_from_mxfp, with the torch code that stands beside it."""
    from triton_kernels.numerics_details.mxfp import upcast_from_mxfp_torch

    return upcast_from_mxfp_torch(tensor, scale, target_dtype, axis)


def install() -> None:
    from sglang.srt.layers import quantization
    from sglang.srt.layers.quantization import mxfp4
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register("triton_kernels.numerics_details.mxfp.upcast_from_mxfp", upcast, HookType.REPLACE)
    quantization.QUANTIZATION_METHODS["mxfp4"] = mxfp4.Mxfp4Config
    mxfp4._is_cpu = True
