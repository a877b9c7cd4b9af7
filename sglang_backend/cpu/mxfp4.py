"""Targets with experts in MXFP4 (gpt-oss as published) on the CPU platform: unpacked to bf16 as they are loaded.

SGLang has this path for its own CPU engine, where its names and flags say that the device is one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(
    tensor: Tensor, scale: Tensor, target_dtype: torch.dtype, axis: int, tensor_scale: Tensor | None = None
) -> Tensor:
    """Unpack with the torch code that stands beside triton_kernels' upcast_from_mxfp.

    tensor_scale: of NVFP4, which is not served here.
    """
    if tensor_scale is not None:
        raise NotImplementedError("the CPU platform unpacks MXFP4 alone")
    from triton_kernels.numerics_details.mxfp import upcast_from_mxfp_torch

    return upcast_from_mxfp_torch(tensor, scale, target_dtype, axis)
