"""The commands that a page or script shows, and what can be checked of them without running them."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from peagle.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
CODE_BLOCK = re.compile(r"^```[\w-]*\n([\s\S]*?)^```|((?:^(?: {4}.*)?\n)*^ {4}.*\n)", re.MULTILINE)
PEAGLE = rf"(?<![-\w./])peagle (?={'|'.join(COMMANDS)})"
PROGRAM = re.compile(rf"(?:\$?python -m |(?<![-\w./])make |torchrun |{PEAGLE})[^#|>]*")
Parser = argparse.ArgumentParser


# The test that runs what a command runs, by `Command.what`; other commands are marked as needing a GPU.
RUN_BY = {
    "trainer prepare": "trainer/test_command.py",
    "trainer regenerate": "trainer/test_regenerate.py",
    "trainer extract": "trainer/test_extract.py",
    "trainer train": "trainer/test_command.py",
    "trainer eval": "trainer/test_command.py",
    "trainer export": "trainer/test_export.py",
    "torchrun trainer train": "trainer/test_distributed.py",
    "tools.ablations": "tools/test_ablations.py",
    "tools.bench kernels": "tools/test_bench_kernels.py",
    "tools.bench masks": "tools/test_bench_masks.py",
    "tools.bench parity": "tools/test_bench_parity.py",
    "tools.bench serve": "tools/test_bench_serve_fleet.py",
    "tools.bench step": "tools/test_bench_step.py",
    "tools.bench train": "tools/test_bench_train.py",
    "tools.convert": "tools/test_convert.py",
    "tools.inspect": "tools/test_inspect.py",
    "tools.questions docstrings": "tools/test_questions.py",
    "tools.questions gsm8k": "tools/test_questions.py",
    "tools.questions sampled": "tools/test_questions.py",
    "tools.real_target": "real/test_real_target.py",
    "sglang.launch_server": "sglang_backend/test_dump.py",
    "sglang.launch_server EAGLE3": "sglang_backend/test_eagle3_baseline.py",
    "sglang.launch_server PEAGLE": "sglang_backend/test_server.py",
}


@dataclass(frozen=True)
class Command:
    """words: as a shell splits them; whole: from a code block or script, so that no argument may be missing."""

    page: Path
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"

    @property
    def what(self) -> str:
        """Name the module and, where it has several, the verb or algorithm."""
        words = list(self.words)
        launcher = "torchrun " if words[0] == "torchrun" else ""
        if "-m" in words:
            words = words[words.index("-m") + 1 :]
        if words[0] == "peagle" and len(words) > 1:
            package = COMMANDS[words[1]].module.removesuffix(".__main__")
            words = [package, *words[1 if COMMANDS[words[1]].verb else 2 :]]
        module, *more = words
        algorithm = "--speculative-algorithm"
        if module == "sglang.launch_server":
            verb = more[more.index(algorithm) + 1] if algorithm in more else ""
        else:
            verb = more[0] if more and module in ("trainer", "tools.bench", "tools.questions") else ""
        return f"{launcher}{module} {verb}".rstrip()


def commands(page: Path) -> list[Command]:
    """Return the commands in code blocks and in code within sentences; of a script, those of its lines."""
    text = page.read_text()
    script = page.suffix == ".sh"
    blocks = (
        [re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE)] if script else [a or b for a, b in CODE_BLOCK.findall(text)]
    )
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    spans = [] if script else re.findall(r"(?<!`)`([^`]+)`(?!`)", CODE_BLOCK.sub("", text))
    found = [(match[0], True) for line in lines for match in PROGRAM.finditer(line)]
    found += [(match[0], False) for span in spans if (match := PROGRAM.match(span.replace("\n", " ")))]
    return [Command(page, _words(shown), whole) for shown, whole in found]


def _words(shown: str) -> tuple[str, ...]:
    """Split; what is optional ([--verify]) is given, of a choice ({a,b}) the first; a number stands for $NUMBERS."""
    shown = re.sub(r"\$\(\(.*?\)\)|\$[A-Z]+", "1", shown)
    shown = re.sub(r"\{(\w+)[^}]*\}", r"\1", re.sub(r"\$\{\w+[^}]*\}", "", shown))
    return tuple(word for word in shlex.split(re.sub(r"[][]", "", shown)) if word not in ("...", "&", "2"))


class Parsed(Exception):
    """Raised in place of running a command whose options have been read."""

    def __init__(self, options: argparse.Namespace, more: list[str]) -> None:
        self.options, self.more = options, more


def parse(module: str, arguments: list[str]) -> Parsed:
    """Start `python -m module arguments` and stop when its options have been read.

    Raises ValueError with argparse's sentence on options that do not exist.
    """
    depth = 0
    original = Parser.parse_known_args

    def parse_known_args(self: Parser, args: Any = None, namespace: Any = None) -> Any:
        nonlocal depth
        depth += 1
        try:
            options, more = original(self, args, namespace)
        finally:
            depth -= 1
        if depth == 0:  # the parser itself, not one of a verb
            raise Parsed(options, more)
        return options, more

    def error(self: Parser, message: str) -> None:
        raise ValueError(message)

    with (
        mock.patch.object(Parser, "parse_known_args", parse_known_args),
        mock.patch.object(Parser, "error", error),
        mock.patch("sys.argv", [module, *arguments]),
    ):
        imported = sys.modules.pop(f"{module}.__main__", None)  # another test of this process may have, and needs it
        try:
            runpy.run_module(module, run_name="__main__")
        except Parsed as parsed:
            return parsed
        finally:
            if imported is not None:
                sys.modules[f"{module}.__main__"] = imported
    raise AssertionError(f"python -m {module} reads no options")
