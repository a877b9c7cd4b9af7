"""Where a long verb works until it is done: a directory that one process holds, made with settings all its runs share.

`prepare` and `regenerate` work in <destination>.partial; whoever comes after a killed run continues there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peagle_core.atomic import remove_leftovers, replace_file
from peagle_core.errors import InputError
from trainer.errors import ConfigError

SETTINGS = "settings.json"


@contextmanager
def held(directory: Path, verb: str) -> Iterator[None]:
    """Make the directory and keep other processes out of it; the lock ends with this process, however that ends.

    Raises InputError when another one holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(lock(directory, wait=False))
        except BlockingIOError:
            raise InputError(f"{directory}: another {verb} is writing here") from None
        if not directory.exists() or not os.path.samestat(os.fstat(handle), directory.stat()):
            # It was finished and given its name before it was locked: this is a lock on something else.
            raise InputError(f"{directory}: another {verb} finished here just now")
        yield


@contextmanager
def lock(directory: Path, wait: bool) -> Iterator[int]:
    """Hold the directory's lock; yields the open directory. Raises BlockingIOError where another process holds it and
    wait is off.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def begin(directory: Path, settings: dict[str, Any]) -> None:
    """Compare with what an earlier run left here, and remove what it was writing when it ended.

    Raises ConfigError naming the first setting that differs.
    """
    path = directory / SETTINGS
    remove_leftovers(directory)
    if path.is_file():
        refuse_other_settings(directory, json.loads(path.read_bytes()), settings)
    else:
        for stray in directory.iterdir():
            stray.unlink(missing_ok=True)
        replace_file(path, json.dumps(settings, indent=1).encode())


def refuse_other_settings(place: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError naming the first setting that differs."""
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise ConfigError(
                f"{place}: was made with {key} = {then.get(key)}, this run has {now.get(key)}; "
                "use the same, choose another place, or remove this one"
            )
