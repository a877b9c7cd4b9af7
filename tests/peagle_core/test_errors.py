"""What a user sees of an error: one sentence, one exit code."""

from __future__ import annotations

import errno
import signal

import pytest

from peagle_core.errors import InputError, exit_code, first_line, one_line, run_command


class WrongConfig(InputError):
    exit_code = 2


@pytest.mark.parametrize(
    ("error", "whole", "first"),
    [
        (ValueError("one\n  two\tthree \n"), "one two three", "one"),
        (ValueError("\n\n first\nsecond"), "first second", "first"),
        (KeyError(), "KeyError", "KeyError"),
        (RuntimeError("x" * 1000), "x" * 296 + " ...", "x" * 296 + " ..."),
    ],
)
def test_an_error_becomes_one_line(error, whole, first):
    assert one_line(error) == whole
    assert first_line(error) == first


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("a.json: broken"), 1, "error: a.json: broken\n"),
        (WrongConfig("lr: wrong"), 2, "error: lr: wrong\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 1, "error: /full: No space left on device\n"),
        (OSError("no network\ntry later"), 1, "error: no network try later\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_a_command_ends_with_a_sentence_and_a_code(capsys, error, code, says):
    assert run_command(raises(error), "stopped") == code
    assert capsys.readouterr().err == says


def test_a_command_ends_with_the_code_of_its_work():
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    assert exit_code(signal.SIGTERM) == 143


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_one_of_several_processes_speaks(capsys):
    assert run_command(raises(InputError("x")), speaks=lambda error: False) == 1
    assert capsys.readouterr().err == ""
