"""The console command: it starts at once, teaches, and hands every command to the module that has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peagle.__main__ import COMMANDS, main
from peagle_core import __version__


def test_help_teaches_and_imports_nothing_heavy():
    script = "import sys; from peagle.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    text = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "peagle train target=MODEL data.train=answers.jsonl" in text
    assert [line.split()[0] for line in text.partition("Commands:\n\n")[2].splitlines()] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as exit_code:
        main([name, "--help"])
    assert exit_code.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: peagle {name} ")
    assert "python -m t" not in text


def test_version_and_a_command_that_does_not_exist(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"peagle {__version__}\n"
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err
    assert main([]) == 0  # help
