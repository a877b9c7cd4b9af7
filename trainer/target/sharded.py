"""A frozen target divided over the processes of each machine (FSDP2): every layer is gathered when it runs.

Embedding, final norm and output head stay whole in every process: the drafter starts from them and the loss reads them.
The first process loads the target on the CPU; the others never hold more than a tensor of it beside their pieces.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from peagle_core.errors import InputError
from trainer.parallel import processes
from trainer.target.lockstep import keep_together

Kind = tuple[torch.Size, torch.dtype]


def load_sharded(load: Callable[[], PreTrainedModel], device: torch.device) -> PreTrainedModel:
    """load: reads the whole target on the CPU; called in the first process. Every pass is then one of all processes.

    Raises InputError where the target has no layers that transformers knows how to place, or unusual weights.
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
    keep_together(target)
    return target


def target_layers(target: PreTrainedModel) -> list[nn.Module]:
    """What transformers keeps on one device when it places a model on several."""
    return [m for m in target.modules() if type(m).__name__ in (target._no_split_modules or ())]


def gathered_bytes(target: nn.Module) -> int:
    """What a pass of a sharded target has whole beside the pieces: the layer that runs and the next one."""
    layers = [m for m in target.modules() if isinstance(m, FSDPModule) and m is not target]
    return 2 * max((sum(p.nbytes for p in layer.parameters()) for layer in layers), default=0)


def _tensors(model: nn.Module | None) -> dict[str, Tensor]:
    return {} if model is None else {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _fill(target: nn.Module, whole: nn.Module | None, kinds: dict[str, Kind], device: torch.device) -> None:
    """One tensor after the other, from the first process to all."""
    source = _tensors(whole)
    for name, tensor in _tensors(target).items():
        shape, dtype = kinds[name]
        full = source[name].to(device) if source else torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(full, 0)
        if isinstance(tensor, DTensor):
            tensor.copy_(distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None))
        else:
            tensor.data = full
