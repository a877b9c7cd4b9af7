"""How the drafter's weights lie over the processes, and how their gradients become one.

A step takes several backward passes per row and reads weights outside `forward`, and processes have different numbers
of rows or none. So nothing is communicated inside a pass: the weights are whole while a step's rows run, and the
gradients are summed once, at its end. (The loss is divided by what all processes charge together, so sums are right.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from peagle_core.drafter import PEagleDrafter
from trainer.parallel.processes import size


class Weights:
    """The weights of a run in one process, where nothing is communicated; the base of the other two."""

    def __init__(self, drafter: PEagleDrafter) -> None:
        self.drafter = drafter

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather the sharded weights for this block. Collective: every process must enter it."""
        yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Gather as `whole` does; at the end give every trained parameter its gradient, summed over all processes."""
        yield
        self._fill()

    def _fill(self) -> None:
        """Give parameters that no local row reached a zero gradient, so that all processes reduce the same tensors."""
        for parameter in self.drafter.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


class Replicated(Weights):
    """Every process has everything; gradients are summed parameter by parameter."""

    def __init__(self, drafter: PEagleDrafter) -> None:
        super().__init__(drafter)
        for tensor in drafter.state_dict().values():
            dist.broadcast(tensor, 0)

    @contextmanager
    def step(self) -> Iterator[None]:
        yield
        self._fill()
        gradients = [p.grad for p in self.drafter.parameters() if p.grad is not None]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            assert work is not None
            work.wait()


class Part(nn.Module):
    """Weights that travel together.

    Its forward does nothing: going through it backward is what makes FSDP sum the gradients that are there and hand
    every process its piece. The module inside has no hooks and runs as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class Sharded(Weights):
    """FSDP2: between steps every process holds a piece of each weight and of its optimizer state.

    Gathered once a step, a part (embedding, layer, head, rest) at a time, and its gradients scattered once.
    """

    def __init__(self, drafter: PEagleDrafter) -> None:
        super().__init__(drafter)
        mesh = init_device_mesh(drafter.fc.weight.device.type, (size(),))
        self.parts: list[Any] = []
        taken: set[nn.Parameter] = set()
        for module in (drafter.embed_tokens, *drafter.layers, drafter.lm_head, drafter):
            part = fully_shard(Part(module), mesh=mesh, reshard_after_forward=False, ignored_params=set(taken))
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # plain sums, which gloo has too
            self.parts.append(part)
            taken |= set(module.parameters())  # new ones: the pieces

    @contextmanager
    def whole(self) -> Iterator[None]:
        for part in self.parts:
            part.unshard()
        try:
            yield
        finally:
            for part in self.parts:
                part.reshard()

    @contextmanager
    def step(self) -> Iterator[None]:
        with self.whole():
            yield
            self._fill()
            start = torch.zeros((), device=self.drafter.d2t.device, requires_grad=True)
            for part in self.parts:
                part(start).backward()


def make_weights(drafter: PEagleDrafter, parallel: str) -> Weights:
    """Lay a drafter's weights over the processes. To be called before the optimizers, which must see the pieces.

    parallel: "fsdp", or anything for replication.
    """
    if size() == 1:
        return Weights(drafter)
    return Sharded(drafter) if parallel == "fsdp" else Replicated(drafter)


def clip_gradients(drafter: PEagleDrafter, max_norm: float) -> float:
    """Scale all gradients alike so that their norm, over whole tensors, is at most max_norm; returns it as it was."""
    parameters = [p for p in drafter.parameters() if p.grad is not None]
    if not parameters:
        return 0.0
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def local(tensor: Tensor) -> Tensor:
    """Return this process's piece of a tensor, or the tensor where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
