"""The verbs `train` and `eval`, from a configuration to files.

A run directory holds run.yaml (the resolved configuration), checkpoints/, tensorboard/, head/ (the drafter, as engines
load it; none for a hidden-state design that no engine runs), data.json (what it was trained on) and metrics.json.
"""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from peagle_core.checkpoint import load_drafter, save_drafter
from peagle_core.config_formats import config_record
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.target import Ends
from trainer.checkpoint.checkpoints import is_checkpoint, load_checkpoint, load_trained, newest_checkpoint
from trainer.config import RunConfig
from trainer.data.packing import PackedRow, pack
from trainer.errors import ConfigError
from trainer.evaluate import Evaluation, evaluate, prompts_of
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.choose import flush, open_states, remove, target_bytes
from trainer.inputs import RunInputs, load_inputs
from trainer.new_drafter import new_drafter
from trainer.parallel import processes
from trainer.sizing.choose import settle
from trainer.sizing.parallel import settle_parallel
from trainer.train.loop import new_state, train
from trainer.train.periodic_evaluation import PeriodicEvaluation
from trainer.train.progress import Progress
from trainer.train.run_directory import data_summary, write_record


def run_train(config: RunConfig, resume: bool = False) -> signal.Signals | None:
    """Train, save output_dir/head, measure it. Returns the signal that stopped the run early, else None.

    Raises ConfigError when output_dir holds a run already and `resume` is off.
    """
    checkpoints = config.output / "checkpoints"
    newest = processes.from_main(newest_checkpoint(checkpoints))
    if newest and not resume:
        raise ConfigError(f"{newest} exists; add --resume to continue it, or choose another output_dir")
    asked, config = config, settle_parallel(config)
    inputs = load_inputs(config, whole=config.states.source == "in_process")
    rows = pack(inputs.train, config.data.row_length)
    drafter = new_drafter(config, inputs.target, inputs.mask_token_id, inputs.train)
    needed = {"data.train": inputs.train, "held-out": inputs.heldout}
    states = open_states(config, inputs, drafter.config.aux_layer_ids_for(inputs.num_target_layers), needed)
    config = settle(config, drafter, target_bytes(inputs, states))
    state = new_state(config, drafter, len(rows))
    contract = make_contract(config, drafter, rows)
    processes.check_same(contract, "the drafter, the settings or the data")
    processes.check_shared(config.output)
    if newest:
        load_checkpoint(newest, state, contract)
        print(f"resumed at step {state.step} from {newest}")
    resolved = config.drafter.model_copy(update={"mask_token_id": inputs.mask_token_id})
    if processes.is_main():
        config.model_copy(update={"drafter": resolved, "parallel": asked.parallel}).save(config.output / "run.yaml")
    write_record(config.output / "data.json", data_summary(config, inputs, len(rows)))
    parameters = sum(p.numel() for p in drafter.parameters() if p.requires_grad)
    print(
        f"drafter: {drafter.config.num_hidden_layers} layers, K = {drafter.config.num_depths}, "
        f"{parameters / 1e6:.1f}M trained parameters, {_mask(inputs)}; "
        f"{len(rows)} rows, {state.total_steps} steps on {config.device}{_processes(config)}"
    )
    progress = Progress(config.output / "tensorboard", state.total_steps, state.step, config.log_every)
    try:
        evaluation = PeriodicEvaluation(config, inputs, state, states, progress)
        stopped = train(config, state, rows, states, progress, checkpoints, contract, evaluation)
        flush(states)
        progress.bar.close()
        if stopped:
            print(f"{stopped.name}: stopped after step {state.step} of {state.total_steps}; continue with --resume")
            return stopped
        if drafter.config.hidden_state_design == "shared":
            with state.weights.whole():
                if processes.is_main():
                    save_drafter(drafter, config.output / "head", getattr(torch, config.head_dtype))
            processes.barrier()
        else:
            design = drafter.config.hidden_state_design
            print(f"hidden_state_design {design} is for research: no head, only checkpoints")
        result = _evaluate_saved(config, inputs, _saved(config), config.output / "metrics.json", state.step, states)
        progress.evaluation(state.step, result)
    finally:
        progress.close()
    if not config.states.keep:
        processes.barrier()
        if processes.is_main():
            remove(states)
    return None


def run_eval(config: RunConfig, head: Path | None = None) -> Evaluation:
    """Measure a head directory or a checkpoint (default: what the run saved) and write output_dir/eval.json."""
    if processes.size() > 1:
        config = settle_parallel(config)
    inputs = load_inputs(config, whole=config.states.source == "in_process")
    return _evaluate_saved(config, inputs, head or _saved(config), config.output / "eval.json")


def _saved(config: RunConfig) -> Path:
    """output_dir/head, or the newest checkpoint for a hidden-state design that has no head."""
    if config.drafter.hidden_state_design == "shared":
        return config.output / "head"
    newest = newest_checkpoint(config.output / "checkpoints")
    if newest is None:
        raise InputError(f"{config.output / 'checkpoints'}: no checkpoint to measure")
    return newest


def _processes(config: RunConfig) -> str:
    if processes.size() == 1:
        return ""
    idle = " (fewer rows than processes: some are idle)" if config.optim.rows_per_step < processes.size() else ""
    return f", {processes.size()} processes ({config.parallel}), {config.optim.rows_per_step} rows a step{idle}"


def make_contract(config: RunConfig, drafter: PEagleDrafter, rows: Sequence[PackedRow]) -> dict[str, Any]:
    """What a checkpoint's numbers mean: the drafter, the draw of elements, the data and its order."""
    return {
        "algorithm": config.algorithm,
        "drafter": config_record(drafter.config, "float32"),
        "draft vocabulary": _digest([drafter.d2t]),
        "retention": config.drafter.retention,
        "retention_min": config.drafter.retention_min,
        "seed": config.seed,
        "optimizer": config.optim.optimizer,
        "data": _digest(t for row in rows for t in (row.input_ids, row.loss_mask, row.doc_ids)),
    }


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _evaluate_saved(
    config: RunConfig,
    inputs: RunInputs,
    head: Path,
    report: Path,
    step: int | None = None,
    states: StateSource | None = None,
) -> Evaluation:
    """Measure what was saved, not what is in memory: the head's dtype is part of the result.

    Without the whole target there is no drafter loop, only the held-out text.
    """
    drafter = load_trained(head) if is_checkpoint(head) else load_drafter(head, torch.float32, inputs.target)
    drafter = drafter.to(config.device).eval()
    if drafter.config.target_hidden_size != _hidden_size(inputs.target):
        raise InputError(
            f"{head}: was made for a target of hidden size {drafter.config.target_hidden_size}, "
            f"{config.target} has {_hidden_size(inputs.target)}"
        )
    if states is None:
        aux_layer_ids = drafter.config.aux_layer_ids_for(inputs.num_target_layers)
        states = open_states(config, inputs, aux_layer_ids, {"held-out": inputs.heldout})
    prompts = prompts_of(inputs.heldout, config.eval.num_prompts, config.eval.prompt_tokens)
    if inputs.model is None:
        print(
            "the drafter loop is left out, for states.source=cache holds no target; "
            "`python -m trainer eval` with states.source=in_process runs it"
        )
    result = evaluate(
        config,
        inputs.model,
        drafter,
        states,
        pack(inputs.heldout, config.data.row_length),
        [prompt.to(config.device) for prompt in prompts],
        inputs.eos_token_id,
    )
    flush(states)
    write_record(report, {"head": str(head), "target": config.target, "step": step, **result.to_dict()})
    print("\n".join([*result.lines(), f"written: {report}"]))
    return result


def _mask(inputs: RunInputs) -> str:
    return "no mask token (EAGLE-3)" if inputs.mask_token_id is None else f"mask token {inputs.mask_token_id}"


def _hidden_size(target: Ends) -> int:
    return target.config.get_text_config().hidden_size
