"""Serve a real chat model with SGLang on this CPU, with no speculation, EAGLE-3 and P-EAGLE: `python -m tools.demo`.

That is what `make demo` runs, after installing the target (SmolLM2-135M-Instruct, 93 MB). The heads are those in
heads/. At the end a head is trained for three minutes, to show that and how it learns. Everything goes to build/demo:
report.html has the table, the pictures and answers in which one sees what was drafted, accepted and corrected.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.command_line import CommandParser
from peagle_core.errors import InputError, run_command

HEADS = Path(__file__).resolve().parents[2] / "heads"


def main() -> int:
    parser = CommandParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("build/demo"), help="where everything goes (build/demo)")
    parser.add_argument("--no-training", action="store_true", help="leave out the three minutes of training at the end")
    options = parser.parse_args()
    return run_command(lambda: _run(options.dir, not options.no_training))


def _run(directory: Path, training: bool) -> int:
    from tools.demo.short_training import short_training
    from tools.real_target import build

    steps = 3 if training else 2
    if not HEADS.is_dir():
        raise InputError("the demo runs in a checkout, whose heads it serves")
    print(f"1/{steps} target: SmolLM2-135M-Instruct", flush=True)
    target = build(directory / "smollm2-135m-instruct")
    print(f"2/{steps} serving it with SGLang on this CPU, three servers in turns", flush=True)
    code = serve_and_report(target, directory)
    if training:
        print(f"\n3/{steps} three minutes of training, from nothing", flush=True)
        short_training(target, HEADS, directory)
    return code


def serve_and_report(target: Path, directory: Path) -> int:
    """Return the exit code: 1 when in float32 a server's output is not that of no speculation."""
    from tools.bench.serve.table import text_table
    from tools.demo.serve import serve

    found = serve(target, HEADS, directory)
    for results in found:
        print(f"\n{results.workload}\n{text_table(results)}")
    print(f"\nreport: {directory / 'report.html'}, results.json, results.csv and the pictures")
    different = [row for row in found[-1].rows if row.outputs_equal != 1.0]
    if different:
        print(f"demo: {len(different)} runs did not reproduce the output without speculation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
