"""Every command of ours takes its options whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peagle_core.command_line import CommandParser

ROOT = Path(__file__).parents[2]


def test_the_beginning_of_an_option_is_not_the_option(capsys):
    parser = CommandParser(prog="command")
    verb = parser.add_subparsers().add_parser("verb")
    verb.add_argument("--tokenizer")
    assert parser.parse_args(["verb", "--tokenizer", "x"]).tokenizer == "x"
    with pytest.raises(SystemExit):
        parser.parse_args(["verb", "--to", "x"])
    assert "unrecognized arguments: --to x" in capsys.readouterr().err


def test_every_command_reads_its_options_so():
    files = [path for folder in ("tools", "trainer", "peagle", "peagle_core") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    makes_one = re.compile(r"argparse\.ArgumentParser\(")
    assert [str(path) for path in files if makes_one.search(path.read_text())] == []
