"""Train a P-EAGLE head on a laptop and serve it with SGLang: `python -m tools.demo` (what `make demo` runs).

Everything happens under build/demo: a tiny target is trained on Python's standard library, a P-EAGLE head and an
EAGLE-3 head on the target's own text, then SGLang serves the target without speculation and with either head. What is
finished is reused, so a second run goes straight to serving.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peagle_core.errors import run_command
from tools.demo.both_heads import build_both_heads, use_half_of_the_cores
from tools.demo.head import HeadRecipe
from tools.demo.target import build_target


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("build/demo"), help="where everything goes (build/demo)")
    parser.add_argument("--build-only", action="store_true", help="target and heads, without serving them")
    options = parser.parse_args()
    use_half_of_the_cores()
    return run_command(lambda: _run(options.dir, options.build_only))


def _run(directory: Path, build_only: bool) -> int:
    print("1/3 target: a small Llama on the standard library's source", flush=True)
    build_target(directory)
    print("2/3 heads: P-EAGLE on the target's own text and, at the same time, EAGLE-3 to compare with", flush=True)
    build_both_heads(directory, HeadRecipe())
    if build_only:
        return 0
    print("3/3 serving with SGLang on the CPU", flush=True)
    return serve_and_report(directory)


def serve_and_report(directory: Path) -> int:
    """Return the exit code: 1 when a server's output is not that of no speculation."""
    from tools.bench.serve.table import text_table
    from tools.demo.serve import serve

    results = serve(directory)
    print(text_table(results))
    print(f"\nreport: {directory / 'report.html'}, results.json, results.csv and the pictures")
    different = [row for row in results.rows if row.outputs_equal != 1.0]
    if different:
        print(f"demo: {len(different)} runs did not reproduce the output without speculation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
