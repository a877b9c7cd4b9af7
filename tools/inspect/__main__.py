"""python -m tools.inspect DIR [--target DIR]: what a P-EAGLE head is, how to serve it, what is wrong with it.

DIR: a head in any format (ours, AWS's, speculators', NeMo's) or a training checkpoint. Exit code 1 when problems are
found. --target: the target model's directory; then the mask id, the sizes and the aux layers are checked against it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.errors import run_command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of the head")
    parser.add_argument("--target", type=Path, metavar="DIR", help="directory of the target model")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    # Imported late, for torch takes seconds to load and --help should not.
    from tools.inspect.report import inspect_head

    report = inspect_head(options.directory, options.target)
    width = max(map(len, report.facts))
    for name, value in report.facts.items():
        print(f"{name:<{width}}  {value}")
    for command, how in report.serving.items():
        print(f"\n{command}:\n  {how}")
    print()
    for problem in report.problems:
        print(f"problem: {problem}")
    if not report.problems:
        print("no problems found")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
