"""The command line refuses in one sentence."""

from __future__ import annotations

from trainer.__main__ import main


def refused(arguments, code, says, capsys):
    assert main(arguments) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error, error
