"""How errors reach a user: in one sentence on stderr, never as a traceback, and with an exit code.

Exit codes of every command: 0; 1 for bad input and for what the operating system refuses (a full disk); 2 for a wrong
configuration, as argparse ends for wrong arguments; 128 + n where signal n ended it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

LONGEST_REASON = 300  # characters


class InputError(ValueError):
    """Bad input (a config, a checkpoint, data). Its message is one sentence that names the place."""

    exit_code = 1


def one_line(error: object) -> str:
    """Return what an error (or any text from elsewhere) says, in one line of at most 300 characters.

    For an error without a message, the name of its type.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 4] + " ..."


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, where advice that does not apply follows (transformers)."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


def exit_code(reason: BaseException | signal.Signals) -> int:
    """Return the exit code of a command that an error, Ctrl-C or a signal ended."""
    if isinstance(reason, KeyboardInterrupt):
        reason = signal.SIGINT
    if isinstance(reason, signal.Signals):
        return 128 + reason
    return reason.exit_code if isinstance(reason, InputError) else 1


def run_command(
    work: Callable[[], int | None],
    interrupted: str = "interrupted",
    speaks: Callable[[Exception], bool] = lambda error: True,
) -> int:
    """Run a command's work and return its exit code; an expected error becomes one sentence on stderr.

    work: returns an exit code, None for 0. interrupted: what to say after Ctrl-C. speaks: whether this process tells of
    an error, for only one of several should. Errors other than InputError and OSError are ours and pass through.
    """
    try:
        return work() or 0
    except (InputError, OSError) as error:
        if speaks(error):
            print(f"error: {_sentence(error)}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt as error:
        print(interrupted, file=sys.stderr)
        return exit_code(error)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):  # a full disk, a place one may not write to
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or one_line(error)}"
    return str(error)
