r"""Train a P-EAGLE drafter for a language model, and convert, inspect and measure drafters.

From data to a served head:

  peagle regenerate target=MODEL data.train=chats.jsonl --to answers.jsonl    # needs a running server of MODEL
  peagle train target=MODEL data.train=answers.jsonl output_dir=run           # run/head is the head
  peagle inspect run/head --target MODEL                                      # what it is, how to serve it
  python -m sglang.launch_server --model-path MODEL --speculative-algorithm PEAGLE \
      --speculative-draft-model-path run/head --speculative-num-steps 5
  peagle bench serve --target MODEL --peagle run/head --data questions.jsonl  # tokens per second, acceptance
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from peagle import __version__

# A wheel carries `trainer` and `tools` here: as packages of their own they would shadow other people's (setup.py).
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Command:
    """One command: its module, whose `main(arguments, prog)` runs it. verb: whether main expects the command's name."""

    module: str
    text: str
    verb: bool = False


COMMANDS = {
    "regenerate": Command("trainer.__main__", "replace the answers in your data by the target's own", verb=True),
    "prepare": Command("trainer.__main__", "tokenise large data once, into a directory of shards", verb=True),
    "extract": Command("trainer.__main__", "write the target's hidden states to disk", verb=True),
    "train": Command("trainer.__main__", "train a drafter, save its head and measure it", verb=True),
    "eval": Command("trainer.__main__", "measure acceptance length and accuracy of a head", verb=True),
    "export": Command("trainer.__main__", "make a head directory from a training checkpoint", verb=True),
    "convert": Command("tools.convert.__main__", "write a head in another format (vLLM, speculators)"),
    "inspect": Command("tools.inspect.__main__", "say what a head is, how to serve it, what is wrong with it"),
    "bench": Command("tools.bench.__main__", "measure serving, training steps, kernels"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code (see `peagle_core.errors`). Nothing heavy is imported before that."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"peagle {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"peagle: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if BUNDLED.is_dir():
        use_bundled()
    command = COMMANDS[name]
    run: Callable[..., int] = importlib.import_module(command.module).main
    return run(arguments, "peagle") if command.verb else run(arguments[1:], f"peagle {name}")


def use_bundled() -> None:
    """Let this process and those that it starts import what the wheel bundles."""
    sys.path.insert(0, str(BUNDLED))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(BUNDLED), *filter(None, [os.environ.get("PYTHONPATH")])])


def usage() -> str:
    """Return the text of --help."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items()]
    return (
        "usage: peagle COMMAND ...     (peagle COMMAND --help for its options; peagle --version)\n\n"
        f"{__doc__}\nCommands:\n\n" + "\n".join(lines)
    )


if __name__ == "__main__":
    sys.exit(main())
