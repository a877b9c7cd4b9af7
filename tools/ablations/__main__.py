r"""Run ablations and write their page: the paper's on the tiny target, or those on a real chat model.

    python -m tools.ablations --dry-run                      # which runs there are and which are finished
    python -m tools.ablations                                # the tiny target's, two at a time, then docs/ablations.md
    python -m tools.ablations --only layers-1 layers-4 --seeds 1
    python -m tools.ablations --study smollm2 --target models/smollm2-135m-instruct --work work/smollm2 \
        --heldout benchmarks.jsonl optim.max_steps=2000 precision=bf16

Each run is a process of its own with one thread. What is finished is kept as JSON under build/ablations/results and
not run again while its configuration, the target and the data are the same; an interrupted run starts anew.
The tiny target and its text are made first where build/tiny-target has none. The real one reads what `heads/train.sh`
made: WORK/answers.jsonl and WORK/states, which must hold the held-out answers' states, too (`peagle extract`). Until
all runs of a study are finished its page goes to build/ablations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from peagle_core.command_line import CommandParser
from peagle_core.errors import InputError, run_command

STUDY_NAMES = ("tiny", "smollm2")


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    # Imported late, for torch takes seconds to load and --help should not.
    from tools.ablations.contrasts import configurations
    from tools.ablations.studies import STUDIES

    known = configurations(STUDIES[options.study].contrasts)
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"no ablation {unknown[0]!r}; there are {', '.join(known)}")
    if options.study != "tiny" and not (options.target and options.work and options.heldout):
        parser.error(f"--study {options.study} needs --target, --work and --heldout")
    names = [name for name in known if name in options.only] if options.only else known
    interrupted = "interrupted: the same command continues with what is not finished"
    return run_command(lambda: _run(options, names, known), interrupted)


def _run(options: argparse.Namespace, names: list[str], known: list[str]) -> None:
    from tools.ablations.cost import drafting_ms
    from tools.ablations.document import write_document
    from tools.ablations.inputs import Inputs, build_inputs, inputs_of
    from tools.ablations.record import record_of
    from tools.ablations.schedule import Suite, run_all, trials
    from tools.ablations.studies import STUDIES

    study, tiny = STUDIES[options.study], options.study == "tiny"
    inputs = inputs_of(options.tiny, options.dir) if tiny else Inputs(
        options.target, options.work / "answers.jsonl", options.heldout, options.work / "states"
    )  # fmt: skip
    seeds = range(options.seeds or study.seeds)
    suite = Suite(options.dir, inputs, study.base, study.configurations, _settings(options.overrides))
    if options.dry_run:
        done = {(result.name, result.seed) for result in suite.finished(names, seeds)}
        for name, seed in trials(names, seeds):
            print(f"{name}, seed {seed}: {'finished' if (name, seed) in done else 'to run'}")
        return
    if tiny:
        build_inputs(options.tiny, options.dir)
    elif missing := inputs.missing():
        raise InputError(f"{missing[0]} is not there; heads/train.sh makes answers and states")
    run_all(suite, names, seeds, options.jobs)
    results = suite.finished(known, range(max(3, study.seeds, options.seeds or 0)))
    complete = all(sum(result.name == name for result in results) >= study.seeds for name in known)
    cost = drafting_ms(suite, [name for name in known if any(result.name == name for result in results)])
    page = write_document(options.docs if complete else options.dir, record_of(results, study.contrasts, cost), study)
    print(f"written: {page}")


def _settings(overrides: list[str]) -> dict[str, Any]:
    """Return key=value settings as YAML reads them. Raises InputError for one without a value."""
    import yaml

    if wrong := [text for text in overrides if "=" not in text]:
        raise InputError(f"a setting is key=value, found {wrong[0]!r}")
    return {key: yaml.safe_load(value) for key, value in (text.split("=", 1) for text in overrides)}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive number was expected, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tools.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="what is changed for all runs")
    parser.add_argument("--study", choices=STUDY_NAMES, default="tiny", help="which ablations (tiny)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="configurations to run (all)")
    parser.add_argument("--seeds", type=_positive, help="seeds 0 to N-1 (tiny: 3, smollm2: 1)")
    parser.add_argument("--jobs", type=_positive, default=2, help="runs at a time (2)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, no more")
    parser.add_argument(
        "--tiny",
        type=Path,
        default=Path("build/tiny-target"),
        help="where the tiny target and its data are or go (build/tiny-target)",
    )
    parser.add_argument("--target", type=Path, help="the real target's directory")
    parser.add_argument("--work", type=Path, help="what heads/train.sh made: answers.jsonl and states")
    parser.add_argument("--heldout", type=Path, help="the real target's answers to measure on")
    parser.add_argument("--dir", type=Path, default=Path("build/ablations"), help="where the runs go (build/ablations)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the finished page goes (docs)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
