"""A frozen target divided over the processes of each machine (FSDP2): every layer is gathered when it runs.

Embedding, final norm and output head stay whole in every process: the drafter starts from them and the loss reads them.
The first process loads the target on the CPU; the others never hold more than a tensor of it beside their pieces.

So a pass of one process is a pass of all. Processes need different numbers of them (rows of other lengths, drafts that
are accepted or not), which nobody knows beforehand: before each pass a process tells the others that it has work, and
one that has none left runs along with a single token until nobody has (`collective_passes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from peagle_core.errors import InputError
from peagle_core.target import target_head
from trainer.parallel import processes

Kind = tuple[torch.Size, torch.dtype]


def load_sharded(load: Callable[[], PreTrainedModel], device: torch.device) -> PreTrainedModel:
    """Divide a target over the processes; every pass of it is then one of all, inside `collective_passes`.

    load: reads the whole target on the CPU; called in the first process. Raises InputError where the target has no
    layers that transformers knows how to place, or unusual weights.
    """
    whole = load() if processes.is_main() else None
    kinds: dict[str, Kind] = {name: (t.shape, t.dtype) for name, t in _tensors(whole).items()}
    made_of = None if whole is None else (whole.config, whole.dtype, whole.generation_config)
    (config, dtype, generation_config), kinds = processes.from_main((made_of, kinds))  # type: ignore[misc]
    with torch.device("meta"):
        target = AutoModelForCausalLM.from_config(config, dtype=dtype)
    target.generation_config = generation_config
    there = {name: (p.shape, p.dtype) for name, p in target.named_parameters()}
    if _tensors(target).keys() != kinds.keys() or any(kinds[name] != kind for name, kind in there.items()):
        raise InputError("the target's weights are not those its config describes (quantised?); use parallel: ddp")
    layers = target_layers(target)
    if not layers:
        raise InputError(f"{type(target).__name__} does not name its layers and cannot be sharded; use parallel: ddp")
    processes.check_same(processes.local_size(), "--nproc-per-node")
    nodes = processes.size() // processes.local_size()
    machine = init_device_mesh(device.type, (nodes, processes.local_size()), mesh_dim_names=("machine", "process"))
    within = machine["process"]
    inside = {p for layer in layers for p in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=within)
    ends = {p for p in target.parameters() if p not in inside and not isinstance(p, DTensor)}
    fully_shard(target, mesh=within, ignored_params=ends)
    target.to_empty(device=device)
    target.tie_weights()
    _fill(target, whole, kinds, device)
    target.requires_grad_(False).eval()
    target.passes = _Passes(target)
    return target


@contextmanager
def collective_passes(target: PreTrainedModel | None) -> Iterator[None]:
    """Run work whose only collective call is the target's forward pass. Every process must enter.

    target: the one that may be run inside, None where none is. Where it is sharded, a process that finishes runs dummy
    passes until all are done. An InputError or OSError of one process is raised in all.
    """
    passes: _Passes | None = getattr(target, "passes", None)
    if passes is not None:
        processes.exchange(None)  # who failed before this says so here, not in the middle of a pass
    error: Exception | None = None
    try:
        yield
    except (InputError, OSError) as raised:
        error = raised
    if passes is not None:
        passes.run_along()
    if error is not None:
        processes.exchange(error)
        raise error
    processes.exchange(None)


class _Passes:
    """The passes of a sharded target. idle: this process has no work left and only runs along."""

    def __init__(self, target: PreTrainedModel) -> None:
        self.target, self.idle = target, False
        target.register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: Any) -> None:
        if not self.idle:
            dist.all_reduce(torch.ones((), dtype=torch.int32))

    @torch.no_grad()
    def run_along(self) -> None:
        """Run a single token whenever another process runs the target, until none has work left."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=target_head(self.target).device)
        self.idle = True
        try:
            while True:
                working = torch.zeros((), dtype=torch.int32)
                dist.all_reduce(working)
                if not working:
                    return
                self.target(input_ids=token, use_cache=False, logits_to_keep=1)
        finally:
            self.idle = False


def target_layers(target: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that transformers keeps on one device when it places a model on several."""
    return [m for m in target.modules() if type(m).__name__ in (target._no_split_modules or ())]


def gathered_bytes(target: nn.Module) -> int:
    """Return the bytes that a pass of a sharded target adds to the pieces: the layer that runs and the next one."""
    layers = [m for m in target.modules() if isinstance(m, FSDPModule) and m is not target]
    return 2 * max((sum(p.nbytes for p in layer.parameters()) for layer in layers), default=0)


def _tensors(model: nn.Module | None) -> dict[str, Tensor]:
    return {} if model is None else {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _fill(target: nn.Module, whole: nn.Module | None, kinds: dict[str, Kind], device: torch.device) -> None:
    """Send one tensor after the other from the first process to all."""
    source = _tensors(whole)
    for name, tensor in _tensors(target).items():
        shape, dtype = kinds[name]
        full = source[name].to(device) if source else torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(full, 0)
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None))
        else:
            tensor.data = full
