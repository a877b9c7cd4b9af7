"""python -m tools.bench {serve,parity,train,...}: one module each, with add_arguments(parser) and run(args)."""

from __future__ import annotations

import argparse
import importlib
import sys

from peagle_core.command_line import CommandParser, shown_as
from peagle_core.errors import run_command

PROG = "python -m tools.bench"
COMMANDS = {
    "serve": "no speculation, EAGLE3 and PEAGLE on real questions: speed, acceptance, a page with pictures",
    "parity": "every drafter pass of SGLang beside the reference loop's, on a GPU or the CPU platform",
    "train": "a training step on the CPU, beside speculators' own",
    "step": "a training step of a configuration: seconds and memory of every mode",
    "masks": "what drawing elements and building their mask costs",
    "kernels": "attention and loss kernels beside others and the machine's limits (needs a GPU)",
}


def main(argv: list[str] | None = None, prog: str = PROG) -> int:
    """Return the exit code: see `peagle_core.errors`. prog: how the command was called, for --help."""
    argv = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog=prog, description="Measure; every benchmark has a --help.")
    parsers = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        if argv[:1] != [name]:  # its module is not needed, and would take seconds to load
            parsers.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"tools.bench.{name}")
        plain = argparse.RawDescriptionHelpFormatter
        what = shown_as(module.__doc__, PROG, prog)
        module.add_arguments(parsers.add_parser(name, description=what, help=text, formatter_class=plain))
    args = parser.parse_args(argv)
    return run_command(lambda: importlib.import_module(f"tools.bench.{args.command}").run(args))


if __name__ == "__main__":
    sys.exit(main())
