"""python -m tools.convert SRC DST --to {peagle,vllm,speculators}: a P-EAGLE head in another checkpoint format.

    python -m tools.convert amazon-head head --to speculators --target Llama-3.1-8B-Instruct --check
    python -m tools.convert run/checkpoints/step-00001000 head --to vllm --dtype bfloat16

SRC is a directory: a head in the flat format (ours, AWS's), speculators' or NeMo's, with or without `midlayer.` and
`model.` spellings, or a training checkpoint of ours (step-<n>). DST must not exist; it appears complete or not at all.
peagle and vllm are one format, the flat one: what vLLM loads is what we write. But `peagle` alone keeps
a correction, which vLLM does not read. Formats: docs/checkpoint.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from peagle_core.command_line import CommandParser, shown_as
from peagle_core.errors import exit_code, run_command

PROG = "python -m tools.convert"
DTYPES = ("bfloat16", "float16", "float32")


def main(arguments: list[str] | None = None, prog: str = PROG) -> int:
    """Return the exit code: see `peagle_core.errors`. prog: how the command was called, for --help."""
    options = _parser(prog).parse_args(arguments)
    # Imported late, for torch takes seconds to load and --help should not.
    from tools.convert.run import run

    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        return run_command(lambda: run(options), interrupted="interrupted; nothing was written")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(number: int, _frame: object) -> None:
    """Unwind like an error on SIGTERM, so that the half-written directory is removed."""
    print("stopped; nothing was written", file=sys.stderr)
    sys.exit(exit_code(signal.Signals(number)))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=prog, description=shown_as(__doc__, PROG, prog), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="directory of the head to read")
    parser.add_argument("destination", type=Path, metavar="DST", help="directory to make; must not exist")
    parser.add_argument("--to", required=True, choices=("peagle", "vllm", "speculators"), help="format to write")
    parser.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="directory of the target model: checks that the head fits it and that its mask id ends no text or chat, "
        "writes aux ids that were left to its default, raises max_position_embeddings to its own, and leaves out an "
        "embedding or lm_head that is bit-equal to its own; "
        "where a correction is left out, measures what that costs",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: as stored)")
    parser.add_argument(
        "--aux-ids",
        choices=("entering", "output"),
        default="entering",
        help="what the source's aux layer ids count: the state entering layer k (vLLM, the default) or the output of "
        "layer k (SGLang); written is always the former",
    )
    parser.add_argument(
        "--check",
        nargs="?",
        const="logits",
        choices=("logits", "vllm"),
        help="before DST appears, reload it and compare its logits with the source's on random input; `vllm`: also "
        "serve prompts with it in real vLLM (needs --target)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
