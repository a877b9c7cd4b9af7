"""What the tests of several processes run, in one process or, by torchrun, in two:

python distributed_jobs.py TARGET DATA DIRECTORY    (everything; the first process writes results.pt)
"""

from __future__ import annotations

import copy
import os
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_run import run_options
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from peagle_core.errors import InputError
from peagle_core.target import target_head
from trainer.checkpoint.checkpoints import newest_checkpoint
from trainer.config import RunConfig, load_config
from trainer.data.packing import PackedRow
from trainer.parallel import processes
from trainer.sampler import RowSampler
from trainer.target.load import weight_bytes
from trainer.target.sharded import collective_passes, load_sharded
from trainer.train import loop
from trainer.train.assemble import Run, open_run
from trainer.train.loop import train_step
from trainer.train.run import run_train

FROZEN = ("drafter.train_lm_head=false", "drafter.train_embedding=false")
# A run that is measured at step 2, where the weights are sharded, and at step 4.
MEASURED = ("optim.rows_per_step=3", "eval.every=2", "eval.every_prompts=1")
# Rows a step, and what else is set. Of 1 row one process has none; row 2 charges nothing.
STEPS: dict[str, tuple[str, ...]] = {
    "flat, 3 rows": ("optim.rows_per_step=3",),
    "partition, 5 rows": ("optim.rows_per_step=5", "mode=partition", "num_segments=3"),
    "stream, 3 rows": ("optim.rows_per_step=3", "mode=stream", "chunk_rows=7"),
    "flat, 1 row": ("optim.rows_per_step=1",),
    "stream, frozen": ("optim.rows_per_step=3", "mode=stream", "chunk_rows=7", "drafter.correction_rank=4", *FROZEN),
    "small vocabulary": ("optim.rows_per_step=3", "drafter.draft_vocab_size=60", "drafter.correction_rank=5"),
    "dropout": ("optim.rows_per_step=3", "drafter.hidden_state_design=regularised_ntp"),
    "eagle3": ("optim.rows_per_step=3", "algorithm=eagle3", "mode=stream", "chunk_rows=7"),
    "weights": ("optim.rows_per_step=3", "loss.depth_weights=[1.0,0.5,0.25]"),
}


def options(target: Path, data: Path, output: Path, *more: str) -> RunConfig:
    return load_config(None, [*run_options(target, data, output), *more])


def rows() -> list[PackedRow]:
    """Six rows of different lengths; the third charges nothing."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number, lengths in enumerate(([30, 12, 3], [9], [14, 20], [40], [5, 5, 5, 60], [25])):
        n = sum(lengths)
        made.append(
            PackedRow(
                torch.randint(5, 280, (n,), generator=generator),
                (torch.rand(n, generator=generator) < 0.9) & torch.tensor(number != 2),
                torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
            )
        )
    return made


def build(config: RunConfig) -> Run:
    """A run over `rows` instead of the data's."""
    run = replace(open_run(config), rows=rows())
    run.state.sampler = RowSampler(len(run.rows), config.seed)
    return run


def take_steps(config: RunConfig, count: int = 4) -> dict[str, Any]:
    """Loss, gradient norm and summed gradients of the first steps over `rows`, and the weights after them."""
    run = build(config)
    found: dict[str, Any] = {"loss": [], "norm": [], "gradients": [], "tokens": []}
    clip = loop.clip_gradients

    def note(drafter: Any, max_norm: float) -> float:
        found["gradients"].append({n: whole(p.grad) for n, p in drafter.named_parameters() if p.grad is not None})
        return clip(drafter, max_norm)

    loop.clip_gradients = note
    try:
        for _ in range(count):
            metrics, norm = train_step(run)
            found["loss"].append(None if metrics is None else metrics.loss)
            found["norm"].append(norm)
            found["tokens"].append(run.state.tokens)
    finally:
        loop.clip_gradients = clip
    found["weights"] = {name: whole(p) for name, p in run.drafter.named_parameters()}
    return found


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def stopped_and_resumed(target: Path, data: Path, directory: Path) -> dict[str, Any]:
    """A sharded run that one process is told to stop after step 3; then a replicated one that goes on."""
    config = options(target, data, directory / "run", *MEASURED, "parallel=fsdp")
    step = loop.train_step

    def step_and_signal(run: Run) -> Any:
        result = step(run)
        if run.state.step == 3 and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    loop.train_step = step_and_signal
    try:
        stopped = run_train(config)
    finally:
        loop.train_step = step
    if processes.is_main():
        shutil.copytree(directory / "run", directory / "stopped")
    processes.barrier()
    newest = newest_checkpoint(config.checkpoints)
    assert newest is not None
    finished = run_train(config.model_copy(update={"parallel": "ddp"}), resume=True)
    return {"stopped": stopped, "newest": newest.name, "finished": finished}


def from_states(target: Path, data: Path, directory: Path) -> list[str]:
    """A run whose processes fill a store with a sharded target, then one that reads and removes it. Its shards."""
    states = directory / "states"
    cached = (
        "optim.rows_per_step=3", "states.source=cache", f"states.directory={states}", "states.dtype=float32",
        "states.tokens_per_shard=200",
    )  # fmt: skip
    run_train(options(target, data, directory / "filled", *cached, "parallel=fsdp", "states.on_miss=generate"))
    shards = sorted(path.name for path in states.glob("*.safetensors"))
    processes.barrier()
    run_train(options(target, data, directory / "read", *cached, "parallel=ddp", "states.keep=false"))
    return shards


def sharded_targets() -> dict[str, bool]:
    """Whether targets have the same states sharded, when each process runs them another number of times."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    kinds: dict[str, tuple[PretrainedConfig, torch.dtype]] = {
        "tied": (LlamaConfig(**sizes, tie_word_embeddings=True), torch.bfloat16),
        "experts": (
            Qwen3MoeConfig(**sizes, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16),
            torch.float32,
        ),
    }
    ids = torch.arange(34).view(2, 17)
    equal = {}
    for name, (config, dtype) in kinds.items():
        made = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        target = load_sharded(partial(copy.deepcopy, made), torch.device("cpu"))
        sharded = sum(isinstance(p, DTensor) for p in target.parameters())
        with collective_passes(target), torch.no_grad():
            for _ in range(1 + processes.rank()):
                states = target(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        if processes.is_main():
            whole_states = made(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
            same = all(torch.equal(a, b) for a, b in zip(states, whole_states, strict=True))
            equal[name] = same and sharded > 8 and not isinstance(target_head(target), DTensor)
    return equal


def fails_before_a_pass() -> list[str]:
    """One process fails, the other begins with a sharded target, which both would have to run."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4
    )
    target = load_sharded(partial(AutoModelForCausalLM.from_config, config), torch.device("cpu"))
    expected = sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in target.parameters())
    assert weight_bytes(target) > expected + sum(p.nbytes for p in target.model.layers[0].parameters())
    try:
        if processes.rank() == 1:
            raise processes.send_error(InputError("no head"))
        with collective_passes(target), torch.no_grad():
            target(input_ids=torch.zeros(1, 3, dtype=torch.int64))
        words = "nothing"
    except InputError as error:
        words = f"{error}; known: {processes.known_to_all(error)}"
    return processes.exchange(words)


def errors(target: Path, data: Path, directory: Path) -> dict[str, list[str]]:
    """What every process is told when something is wrong in one."""

    def not_finite(parallel: str) -> None:
        config = options(target, data, directory / "none", f"parallel={parallel}")
        run = build(config)
        with torch.no_grad():
            run.drafter.mask_hidden.fill_(torch.inf)
        train_step(run)

    told = {}
    for name, work in {
        "passes": _fails_in_its_passes,
        "sent": _sends,
        "same": _differs,
        "shared": _not_shared,
        "replicated": partial(not_finite, "ddp"),
        "sharded": partial(not_finite, "fsdp"),
    }.items():
        try:
            work()
            words = "nothing"
        except InputError as error:
            words = f"{error}; known: {processes.known_to_all(error)}"
        told[name] = processes.exchange(words)
    return told


def _fails_in_its_passes() -> None:
    with collective_passes(None):
        if processes.rank() == 1:
            raise InputError("row 7 is wrong")


def _sends() -> None:
    """One process fails somewhere, the others wait for something else."""
    if processes.rank() == 1:
        raise processes.send_error(InputError("no such file"))
    processes.sum_metrics(None)


def _differs() -> None:
    processes.check_same({"data": processes.rank()}, "the data")


def _not_shared() -> None:
    processes.check_shared(Path(sys.argv[3]) / f"seen-by-{processes.rank()}")


def main() -> None:
    target, data, directory = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with processes.process_group():
        results: dict[str, Any] = {"errors": errors(target, data, directory), "targets": sharded_targets()}
        results["errors"]["before"] = fails_before_a_pass()
        for parallel in ("ddp", "fsdp"):
            for name, settings in STEPS.items():
                config = options(target, data, directory / "none", f"parallel={parallel}", *settings)
                results[f"{parallel}: {name}"] = take_steps(config)
        config = options(target, data, directory / "none", "parallel=fsdp", "optim.optimizer=muon")
        results["muon"] = take_steps(config)
        results["run"] = stopped_and_resumed(target, data, directory)
        results["shards"] = from_states(target, data, directory)
        if processes.is_main():
            torch.save(results, directory / "results.pt")


if __name__ == "__main__":
    main()
