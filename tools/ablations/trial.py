"""One training run of an ablation in a process of its own, and the file it leaves: `python -m tools.ablations.trial`.

Called by `tools.ablations`; by hand it repeats a single run. The result appears only when the run is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError


@dataclass(frozen=True)
class Result:
    """accept_length: by the reference loop; per_prompt: steps and tokens of each prompt; cpu_seconds: of the whole
    process, start and measurement included; settings: the resolved configuration; material: digest of target and data.
    """

    name: str
    seed: int
    accept_length: float
    accept_per_position: list[float]
    per_prompt: list[list[int]]
    new_tokens: int
    accuracy_per_depth: list[float]
    expected_accept_length: float
    steps: int
    cpu_seconds: float
    settings: dict[str, Any]
    material: str


def read_result(path: Path) -> Result | None:
    """None where there is no result, or one of another version of this program."""
    try:
        return Result(**json.loads(path.read_text()))
    except (FileNotFoundError, TypeError):
        return None


def run_trial(config_file: Path, overrides: list[str], result_file: Path, material: str) -> Result:
    """Train, measure and write result_file. The run starts anew whatever an interrupted one left.

    Raises InputError when it is stopped by a signal or anything is wrong.
    """
    from trainer.config import load_config
    from trainer.train.run import run_train

    config = load_config(config_file, overrides)
    shutil.rmtree(config.output, ignore_errors=True)
    stopped = run_train(config)
    if stopped:
        raise InputError(f"stopped by {stopped.name}")
    metrics = json.loads((config.output / "metrics.json").read_text())
    (accepted,) = metrics["acceptance"]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = Result(
        name=config_file.stem,
        seed=config.seed,
        accept_length=accepted["accept_length"],
        accept_per_position=accepted["accept_per_position"],
        per_prompt=accepted["per_prompt"],
        new_tokens=accepted["new_tokens"],
        accuracy_per_depth=metrics["accuracy_per_depth"],
        expected_accept_length=metrics["expected_accept_length"],
        steps=metrics["step"],
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        settings=config.model_dump(mode="json"),
        material=material,
    )
    result_file.parent.mkdir(parents=True, exist_ok=True)
    partial = result_file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(result), indent=1) + "\n")
    os.replace(partial, result_file)
    shutil.rmtree(config.checkpoints)  # the largest part, and of no more use
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ablations.trial", description=__doc__)
    parser.add_argument("config", type=Path, help="a file of trainer/configs/ablations")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="target, data, output_dir, seed")
    parser.add_argument("--result", type=Path, required=True, help="file to write")
    parser.add_argument("--material", default="", help="digest of target and data, kept with the result")
    options = parser.parse_args()
    try:
        run_trial(options.config, options.overrides, options.result, options.material)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
