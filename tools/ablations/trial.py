"""Train one ablation in a process of its own and write what it measured: `python -m tools.ablations.trial`.

Called by `tools.ablations`; by hand it repeats a single run. The result appears only when the run is complete.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peagle_core.atomic import replace_file
from peagle_core.command_line import CommandParser
from peagle_core.errors import InputError, run_command


@dataclass(frozen=True)
class Result:
    """Hold what one run measured.

    accept_length: by the reference loop, or along the held-out answers where none was let loose. per_prompt: steps and
    tokens of each prompt. cpu_seconds: of the whole process, start and measurement included. settings: the resolved
    configuration. inputs: digest of target and data.
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
    inputs: str


def read_result(path: Path) -> Result | None:
    """Read a result; None where there is none, or one of another version of this program."""
    try:
        return Result(**json.loads(path.read_text()))
    except (FileNotFoundError, TypeError):
        return None


def run_trial(name: str, base: Path, overrides: list[str], result_file: Path, inputs: str) -> Result:
    """Train, measure and write result_file. The run starts anew whatever an interrupted one left.

    Raises InputError when it is stopped by a signal or anything is wrong.
    """
    from trainer.config import load_config
    from trainer.train.run import run_train

    config = load_config(base, overrides)
    shutil.rmtree(config.output, ignore_errors=True)
    stopped = run_train(config)
    if stopped:
        raise InputError(f"stopped by {stopped.name}")
    metrics = json.loads((config.output / "metrics.json").read_text())
    (accepted,) = metrics["acceptance"] or metrics["acceptance_on_text"]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = Result(
        name=name,
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
        inputs=inputs,
    )
    result_file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(result_file, (json.dumps(asdict(result), indent=1) + "\n").encode())
    shutil.rmtree(config.checkpoints)  # the largest part, and of no more use
    return result


def main() -> int:
    parser = CommandParser(prog="python -m tools.ablations.trial", description=__doc__)
    parser.add_argument("base", type=Path, help="YAML file that all configurations share")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what is changed of it; target, data, seed")
    parser.add_argument("--name", required=True, help="of the configuration")
    parser.add_argument("--result", type=Path, required=True, help="file to write")
    parser.add_argument("--inputs", default="", help="digest of target and data, kept with the result")
    options = parser.parse_args()

    def work() -> None:
        run_trial(options.name, options.base, options.overrides, options.result, options.inputs)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
