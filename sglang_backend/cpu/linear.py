"""Linear layers over weights packed for oneDNN: several rows cost little more than one.

In float32 torch calls MKL, which takes two to four times as long for the K + 1 rows of a verification. In bfloat16 it
takes up to twice as long as oneDNN over a packed weight, for any number of rows. A row's result is also the same bits
in 1, 4, 6 or 24 rows, which does not hold of torch's. The copy costs the weights' memory a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn

from peagle_core.cpu import fast_dtype

ROWS = 8  # what the layout is chosen for: a verification; packed for 1 row it stays as it was
_updates = 0  # how often weights may have changed since the start


@dataclass(frozen=True)
class _Packed:
    weight: Tensor
    address: int  # of the weight that it was made from: sharing of embedding and head replaces it
    updates: int
    lone_row_differs: bool


def note_update(_updater: object, *_args: object, **_kwargs: object) -> None:
    """Note that weights are about to be written: packed copies are made anew in the next forward pass.

    Stands BEFORE every method of SGLang that updates weights; no forward pass runs until they return.
    """
    global _updates
    _updates += 1


def linear(layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return F.linear(x, layer.weight, bias) over the layer's packed weight. x: [..., in], packable and not empty."""
    weight = cast(Tensor, layer.weight)
    packed: _Packed | None = layer.__dict__.get("_peagle_packed")
    if packed is None or packed.address != weight.data_ptr() or packed.updates != _updates:
        packed = layer.__dict__["_peagle_packed"] = _pack(weight)
    if packed.lone_row_differs and x.numel() == x.shape[-1]:
        rows = x.reshape(1, -1).expand(2, -1).contiguous()
        return _product(rows, packed.weight, bias)[:1].view(*x.shape[:-1], -1)
    return _product(x, packed.weight, bias)


def _pack(weight: Tensor) -> _Packed:
    copy = _reorder(weight.detach().contiguous())
    return _Packed(copy, weight.data_ptr(), _updates, _lone_row_differs(*weight.shape, weight.dtype))


def _reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


@cache
def _lone_row_differs(outputs: int, inputs: int, dtype: torch.dtype) -> bool:
    """Try whether one row alone gives other bits than in company: on some CPUs oneDNN has a kernel for one row.

    A matter of the shape, so tried once for each and not again for new weights, whose first forward pass may be a
    decode step.
    """
    weight = torch.arange(outputs * inputs, dtype=torch.float32).sin_().to(dtype).view(outputs, inputs)
    row, packed = weight[:1].contiguous(), _reorder(weight)
    return not torch.equal(_product(row, packed), _product(row.repeat(2, 1), packed)[:1])


def _product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@cache
def packed_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes that are multiplied over packed weights: bfloat16 only where the CPU itself multiplies it."""
    fast, _ = fast_dtype(torch.cpu.get_capabilities())
    return (torch.float32, torch.bfloat16) if fast == "bfloat16" else (torch.float32,)


def _packable(layer: nn.Module, x: Tensor) -> bool:
    weight = getattr(layer, "weight", None)
    return (
        weight is not None
        and weight.dim() == 2
        and weight.dtype == x.dtype
        and x.dtype in packed_dtypes()
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
    )


def apply_linear(apply: Callable, method: object, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stand AROUND UnquantizedLinearMethod.apply."""
    return linear(layer, x, bias) if _packable(layer, x) else apply(method, layer, x, bias)


def compute_lm_head(
    compute: Callable, processor: object, hidden_states: Tensor, lm_head: nn.Module, *args: object, **kwargs: object
) -> Tensor:
    """Stand AROUND LogitsProcessor._compute_lm_head; a head with LoRA adapters is left to it."""
    if hasattr(lm_head, "set_lora") or not _packable(lm_head, hidden_states):
        return compute(processor, hidden_states, lm_head, *args, **kwargs)
    return linear(lm_head, hidden_states, None)
