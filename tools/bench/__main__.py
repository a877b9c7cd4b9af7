"""python -m tools.bench {serve,train,step,masks,kernels}: one module each, with add_arguments(parser) and run(args)."""

from __future__ import annotations

import argparse
import importlib
import sys

from peagle_core.errors import run_command

COMMANDS = ("serve", "train", "step", "masks", "kernels")


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: see `peagle_core.errors`."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parsers = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"tools.bench.{name}")
        what = module.__doc__ or ""
        plain = argparse.RawDescriptionHelpFormatter
        module.add_arguments(
            parsers.add_parser(name, description=what, help=what.split("\n")[0], formatter_class=plain)
        )
    args = parser.parse_args(argv)
    return run_command(lambda: importlib.import_module(f"tools.bench.{args.command}").run(args))


if __name__ == "__main__":
    sys.exit(main())
