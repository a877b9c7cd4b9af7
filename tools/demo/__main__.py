"""Train a P-EAGLE head on a laptop and serve it with SGLang: `python -m tools.demo` (what `make demo` runs).

Everything happens under build/demo: a tiny target is trained on Python's standard library, a P-EAGLE head and an
EAGLE-3 head on the target's own text, then SGLang serves the target without speculation and with either head. What is
finished is reused, so a second run goes straight to serving.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from peagle_core.errors import InputError
from tools.demo.corpus import heldout_prompts, shared_with_training
from tools.demo.head import build_head
from tools.demo.target import build_target

REQUESTS = 48
NEW_TOKENS = 128


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("build/demo"), help="where everything goes (build/demo)")
    parser.add_argument("--build-only", action="store_true", help="target and heads, without serving them")
    options = parser.parse_args()
    directory = options.dir
    # Beside other work, OpenMP threads wait for each other (seen on 2 busy cores: 4 s a step with two, 0.6 with one).
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        print("1/4 target: a small Llama on the standard library's source", flush=True)
        build_target(directory)
        print("2/4 head: P-EAGLE on the target's own text", flush=True)
        build_head(directory)
        print("3/4 head: EAGLE-3 on the same text, to compare with", flush=True)
        build_head(directory, algorithm="eagle3")
        if options.build_only:
            return 0
        print("4/4 serving with SGLang on the CPU", flush=True)
        return serve_and_report(directory)
    except InputError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def serve_and_report(directory: Path) -> int:
    from tools.demo.measure import measure
    from tools.demo.report import write_report

    prompts = heldout_prompts(directory, REQUESTS)
    runs = measure(directory, prompts, NEW_TOKENS)
    shared = shared_with_training(directory, prompts)
    workload = (
        f"{REQUESTS} prompts from held-out files x {NEW_TOKENS} greedy tokens, tiny target trained by this demo; "
        f"the text of {shared} prompts also stands in a training file"
    )
    write_report(directory, runs, workload)
    print(f"\nreport: {directory / 'report.json'} and {directory / 'report.png'}")
    different = [run for run in runs if run["outputs_equal"] < 1.0]
    if different:
        print(f"demo: {len(different)} runs did not reproduce the output without speculation", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
