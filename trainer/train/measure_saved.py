"""Measure a drafter from its files: what a run saved, or a head from elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from peagle_core.target import Ends
from trainer.checkpoint.checkpoints import is_checkpoint, load_trained, newest_checkpoint
from trainer.config import RunConfig
from trainer.data.packing import pack
from trainer.evaluation.evaluate import Evaluation, evaluate, prompts_of
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.choose import open_states
from trainer.inputs import RunInputs
from trainer.train.run_directory import write_record


def measure_saved(
    config: RunConfig,
    inputs: RunInputs,
    head: Path,
    report: Path,
    step: int | None = None,
    hidden_states: StateSource | None = None,
) -> Evaluation:
    """Evaluate a head directory or a checkpoint on the held-out documents; write the numbers to `report`.

    The files are measured, not what is in memory: the head's dtype is part of the result. Without the whole target
    there is no drafter loop, only the held-out text. hidden_states None: a source is opened for this drafter. Raises
    InputError when head and target do not fit.
    """
    drafter = load_trained(head) if is_checkpoint(head) else load_drafter(head, torch.float32, inputs.target)
    drafter = drafter.to(config.device).eval()
    if drafter.config.target_hidden_size != _hidden_size(inputs.target):
        raise InputError(
            f"{head}: was made for a target of hidden size {drafter.config.target_hidden_size}, "
            f"{config.target} has {_hidden_size(inputs.target)}"
        )
    if hidden_states is None:
        aux_layer_ids = drafter.config.aux_layer_ids_for(inputs.num_target_layers)
        hidden_states = open_states(config, inputs, aux_layer_ids, {"held-out": inputs.heldout})
    prompts = prompts_of(inputs.to_answer, config.eval.num_prompts, config.eval.prompt_tokens)
    if inputs.model is None:
        print(
            "the drafter loop is left out, for states.source=cache holds no target; "
            "`peagle eval` with states.source=in_process runs it"
        )
    result = evaluate(
        config,
        inputs.model,
        drafter,
        hidden_states,
        pack(inputs.heldout, config.data.row_length),
        [prompt.to(config.device) for prompt in prompts],
        inputs.end_ids,
    )
    hidden_states.flush()
    write_record(report, {"head": str(head), "target": config.target, "step": step, **result.to_dict()})
    print("\n".join([*result.lines(), f"written: {report}"]))
    return result


def saved_drafter(config: RunConfig) -> Path:
    """Return output_dir/head, or the newest checkpoint for a hidden-state design that has no head.

    Raises InputError where there is no such checkpoint.
    """
    if config.drafter.hidden_state_design == "shared":
        return config.output / "head"
    newest = newest_checkpoint(config.checkpoints)
    if newest is None:
        raise InputError(f"{config.checkpoints}: no checkpoint to measure")
    return newest


def _hidden_size(target: Ends) -> int:
    return target.config.get_text_config().hidden_size
