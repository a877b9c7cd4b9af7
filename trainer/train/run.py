"""The verbs `train` and `eval`, from a configuration to files.

A run directory holds run.yaml (the resolved configuration), checkpoints/, tensorboard/, head/ (the drafter, as engines
load it; none for a hidden-state design that no engine runs), data.json (what it was trained on) and metrics.json.
"""

from __future__ import annotations

import signal
from pathlib import Path

import torch

from peagle_core.checkpoint import save_drafter
from trainer.checkpoint.checkpoints import load_checkpoint, newest_checkpoint
from trainer.config import RunConfig
from trainer.errors import ConfigError
from trainer.evaluation.evaluate import Evaluation
from trainer.parallel import processes
from trainer.sizing.choose import settle_parallel
from trainer.target.chat_date import CHAT_DATE, with_date
from trainer.train.assemble import Run, open_inputs, open_run
from trainer.train.loop import train
from trainer.train.measure_saved import measure_saved, saved_drafter
from trainer.train.periodic_evaluation import PeriodicEvaluation
from trainer.train.progress import Progress
from trainer.train.run_directory import data_summary, write_record


def run_train(config: RunConfig, resume: bool = False) -> signal.Signals | None:
    """Train, save output_dir/head, measure it. Returns the signal that stopped the run early, else None.

    Raises ConfigError when output_dir holds a run already and `resume` is off.
    """
    newest = processes.from_main(newest_checkpoint(config.checkpoints))
    if newest and not resume:
        raise ConfigError(f"{newest} exists; add --resume to continue it, or choose another output_dir")
    config = with_date(config, _dates(config))
    run = open_run(config, newest)
    state = run.state
    processes.check_shared(config.output)
    if newest:
        load_checkpoint(newest, state, run.contract)
        print(f"resumed at step {state.step} from {newest}")
    _write_description(run, asked=config)
    print(_summary(run))
    progress = Progress(config.output / "tensorboard", state.total_steps, state.step, config.log_every)
    try:
        stopped = train(run, progress, PeriodicEvaluation(run, progress))
        run.hidden_states.flush()
        progress.bar.close()
        if stopped:
            print(f"{stopped.name}: stopped after step {state.step} of {state.total_steps}; continue with --resume")
            return stopped
        _save_head(run)
        report = config.output / "metrics.json"
        result = measure_saved(run.config, run.inputs, saved_drafter(config), report, state.step, run.hidden_states)
        progress.evaluation(state.step, result)
    finally:
        progress.close()
    if not config.states.keep:
        processes.barrier()
        if processes.is_main():
            run.hidden_states.remove()
    return None


def run_eval(config: RunConfig, head: Path | None = None) -> Evaluation:
    """Measure a head directory or a checkpoint (default: what the run saved) and write output_dir/eval.json."""
    if processes.size() > 1:
        config = settle_parallel(config)
    config = with_date(config, _dates(config))
    return measure_saved(config, open_inputs(config), head or saved_drafter(config), config.output / "eval.json")


def _dates(config: RunConfig) -> list[Path]:
    """Return the files that may say the day of this run: its own, then that of the hidden states it reads."""
    return [config.output / "run.yaml", *([config.states_directory / CHAT_DATE] * (config.states.source == "cache"))]


def _write_description(run: Run, asked: RunConfig) -> None:
    """Write run.yaml and data.json. `parallel` stays as it was asked for: it may be another when the run is resumed."""
    drafter = run.config.drafter.model_copy(update={"mask_token_id": run.inputs.mask_token_id})
    if processes.is_main():
        run.config.model_copy(update={"drafter": drafter, "parallel": asked.parallel}).save(asked.output / "run.yaml")
    write_record(asked.output / "data.json", data_summary(run.config.data, run.inputs, len(run.rows)))


def _save_head(run: Run) -> None:
    design = run.drafter.config.hidden_state_design
    if design != "shared":
        print(f"hidden_state_design {design} is for research: no head, only checkpoints")
        return
    with run.state.weights.whole():
        if processes.is_main():
            save_drafter(run.drafter, run.config.output / "head", getattr(torch, run.config.head_dtype))
    processes.barrier()


def _summary(run: Run) -> str:
    shape, mask = run.drafter.config, run.inputs.mask_token_id
    parameters = sum(p.numel() for p in run.drafter.parameters() if p.requires_grad)
    return (
        f"drafter: {shape.num_hidden_layers} layers, K = {shape.num_depths}, {parameters / 1e6:.1f}M trained "
        f"parameters, {'no mask token (EAGLE-3)' if mask is None else f'mask token {mask}'}; "
        f"{len(run.rows)} rows, {run.state.total_steps} steps on {run.config.device}"
        f"{_processes(run.config.parallel, run.config.optim.rows_per_step)}"
    )


def _processes(parallel: str, rows_per_step: int) -> str:
    if processes.size() == 1:
        return ""
    idle = " (fewer rows than processes: some are idle)" if rows_per_step < processes.size() else ""
    return f", {processes.size()} processes ({parallel}), {rows_per_step} rows a step{idle}"
