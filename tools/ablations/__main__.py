"""Run the ablations on the tiny target and write docs/ablations.md: `python -m tools.ablations`.

    python -m tools.ablations --dry-run                      # which runs there are and which are finished
    python -m tools.ablations                                # all of them, two at a time, then docs/ablations.md
    python -m tools.ablations --only layers-1 layers-4 --seeds 1

Each run is a process of its own with one thread. What is finished is kept as JSON under build/ablations/results and
not run again while its configuration, the target and the data are the same; an interrupted run starts anew.
The tiny target and its text are made first where build/tiny-target has none. Until all runs are finished the page goes
to build/ablations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.command_line import CommandParser
from peagle_core.errors import run_command

SEEDS = 3


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    # Imported late, for torch takes seconds to load and --help should not.
    from tools.ablations.contrasts import configurations

    known = configurations()
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"no ablation {unknown[0]!r}; there are {', '.join(known)}")
    names = [name for name in known if name in options.only] if options.only else known
    interrupted = "interrupted: the same command continues with what is not finished"
    return run_command(lambda: _run(options, names, known), interrupted)


def _run(options: argparse.Namespace, names: list[str], known: list[str]) -> None:
    from tools.ablations.document import write_document
    from tools.ablations.inputs import build_inputs, inputs_of
    from tools.ablations.record import record_of
    from tools.ablations.schedule import Suite, run_all, trials

    seeds = range(options.seeds)
    suite = Suite(options.dir, inputs_of(options.tiny, options.dir))
    if options.dry_run:
        done = {(result.name, result.seed) for result in suite.finished(names, seeds)}
        for name, seed in trials(names, seeds):
            print(f"{name}, seed {seed}: {'finished' if (name, seed) in done else 'to run'}")
        return
    build_inputs(options.tiny, options.dir)
    run_all(suite, names, seeds, options.jobs)
    results = suite.finished(known, range(max(SEEDS, options.seeds)))
    complete = len(results) == len(known) * max(SEEDS, options.seeds)
    print(f"written: {write_document(options.docs if complete else options.dir, record_of(results))}")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive number was expected, found {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tools.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="configurations to run (all)")
    parser.add_argument("--seeds", type=_positive, default=SEEDS, help=f"seeds 0 to N-1 ({SEEDS})")
    parser.add_argument("--jobs", type=_positive, default=2, help="runs at a time (2)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, no more")
    parser.add_argument(
        "--tiny",
        type=Path,
        default=Path("build/tiny-target"),
        help="where target and data are or go (build/tiny-target)",
    )
    parser.add_argument("--dir", type=Path, default=Path("build/ablations"), help="where the runs go (build/ablations)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the finished page goes (docs)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
