"""Linear layers in float32 over weights packed for oneDNN: several rows cost little more than one.

torch calls MKL, which takes two to four times as long for the K + 1 rows of a verification. A row's result is also the
same bits in 1, 4, 6 or 24 rows, which does not hold of torch's. The copy costs the weights' memory a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

ROWS = 8  # what the layout is chosen for: a verification; packed for 1 row it stays as it was
_updates = 0  # how often weights may have changed since the start


@dataclass(frozen=True)
class _Packed:
    weight: Tensor
    address: int  # of the weight that it was made from: sharing of embedding and head replaces it
    updates: int


def note_update(_updater: object, *_args: object, **_kwargs: object) -> None:
    """Note that weights are about to be written: packed copies are made anew in the next forward pass.

    Stands BEFORE every method of SGLang that updates weights; no forward pass runs until they return.
    """
    global _updates
    _updates += 1


def linear(layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return F.linear(x, layer.weight, bias) over the layer's packed weight. x: float32[..., in], not empty."""
    weight = cast(Tensor, layer.weight)
    packed: _Packed | None = layer.__dict__.get("_peagle_packed")
    if packed is None or packed.address != weight.data_ptr() or packed.updates != _updates:
        copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        packed = layer.__dict__["_peagle_packed"] = _Packed(copy, weight.data_ptr(), _updates)
    return torch.ops.mkldnn._linear_pointwise(x, packed.weight, bias, "none", [], "")


def _packable(layer: nn.Module, x: Tensor) -> bool:
    weight = getattr(layer, "weight", None)
    return (
        weight is not None
        and weight.dim() == 2
        and weight.dtype == x.dtype == torch.float32
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
