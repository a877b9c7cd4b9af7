"""python -m tools.inspect HEAD [--target DIR]: what a P-EAGLE head is, how to serve it, what is wrong with it.

HEAD: a head in any format (ours, AWS's, speculators', NeMo's) or a training checkpoint: its directory, or its name on
the Hugging Face hub, with --revision that one. Exit code 1 when problems are found.
--target: the target model's directory; then the mask id, the sizes and the aux layers are checked against it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.command_line import CommandParser, shown_as
from peagle_core.errors import run_command

PROG = "python -m tools.inspect"


def main(arguments: list[str] | None = None, prog: str = PROG) -> int:
    """Return the exit code: 1 when problems are found. prog: how the command was called, for --help."""
    parser = CommandParser(
        prog=prog, description=shown_as(__doc__, PROG, prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("head", metavar="HEAD", help="directory of the head, or its name on the Hugging Face hub")
    parser.add_argument("--revision", help="branch, tag or commit of a head on the hub")
    parser.add_argument("--target", type=Path, metavar="DIR", help="directory of the target model")
    options = parser.parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    # Imported late, for torch takes seconds to load and --help should not.
    from peagle_core.head_directory import head_directory
    from tools.inspect.report import inspect_head

    report = inspect_head(head_directory(options.head, options.revision), options.target)
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
