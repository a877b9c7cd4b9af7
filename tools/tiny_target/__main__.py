"""Make the tiny target, a P-EAGLE and an EAGLE-3 head for it: `python -m tools.tiny_target [--dir build/tiny-target]`.

About ten minutes on two cores. What is finished is kept: a second run makes what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.command_line import CommandParser
from peagle_core.errors import run_command
from tools.tiny_target.both_heads import build_both_heads, use_half_of_the_cores
from tools.tiny_target.head import HeadRecipe
from tools.tiny_target.target import build_target


def main() -> int:
    parser = CommandParser(
        prog="python -m tools.tiny_target", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("build/tiny-target"), help="where (build/tiny-target)")
    options = parser.parse_args()
    use_half_of_the_cores()
    return run_command(lambda: _build(options.dir))


def _build(directory: Path) -> None:
    print("1/2 target: a small Llama on the standard library's character tables", flush=True)
    build_target(directory)
    print("2/2 heads: P-EAGLE on the target's own text and, at the same time, EAGLE-3 to compare with", flush=True)
    build_both_heads(directory, HeadRecipe())


if __name__ == "__main__":
    sys.exit(main())
