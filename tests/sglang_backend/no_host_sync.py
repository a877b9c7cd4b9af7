"""A mode in which no device tensor gives its value away: `item`, `tolist`, `bool`, `cpu`, `nonzero`, `x[mask]`...

On a GPU each of them makes the host wait for the device. All tensors are on the CPU here, so the mode keeps book: those
given to it are host tensors, and so is what is computed from host tensors alone or made out of Python numbers without
naming a device; everything else counts as a device tensor.
"""

from __future__ import annotations

import functools

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

ASKS = {
    "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__",
    "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "equal", "allclose", "is_nonzero",
    "_local_scalar_dense", "bincount",
}  # fmt: skip
suspended = 0


class HostSync(RuntimeError):
    pass


class NoHostSync(TorchFunctionMode):
    def __init__(self, *host: torch.Tensor | None) -> None:
        super().__init__()
        self.calls = 0
        for tensor in host:
            if tensor is not None:
                tensor.on_host = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if suspended:
            return func(*args, **kwargs)
        self.calls += 1
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_host = all(getattr(x, "on_host", False) for x in tensors)
        if not on_host and asks(func, args, kwargs):
            raise HostSync(f"{func.__name__} of a device tensor: the host would wait for the device")
        if on_host and tensors and func.__name__ == "to" and waits(args[1:], kwargs):
            raise HostSync("to: an ordinary copy to the device, for which the host would wait")
        result = func(*args, **kwargs)
        if on_host and (tensors or kwargs.get("device") is None):
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    x.on_host = True
        return result


def asks(func, args, kwargs) -> bool:
    name = func.__name__
    if name in ("__getitem__", "__setitem__", "index_put_", "index"):
        return any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1]))
    if name == "repeat_interleave":
        sizes_known = kwargs.get("output_size") is not None
        return any(isinstance(x, torch.Tensor) for x in (*args[1:], kwargs.get("repeats"))) and not sizes_known
    if name in ("tensor", "as_tensor"):
        return isinstance(args[0], list | tuple)
    if name == "where":
        return len(args) + len(kwargs) == 1
    return name in ASKS


def waits(args, kwargs) -> bool:
    """Whether `.to(...)` names a device and is not said to be non-blocking."""
    names_device = any(isinstance(x, str | torch.device) for x in (*args, kwargs.get("device")))
    return names_device and not kwargs.get("non_blocking")


def allowed(method):
    """The method, with the mode looking away."""

    @functools.wraps(method)
    def looking_away(*args, **kwargs):
        global suspended
        suspended += 1
        try:
            return method(*args, **kwargs)
        finally:
            suspended -= 1

    return looking_away
