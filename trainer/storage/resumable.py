"""Work in a directory that only one process uses at a time and that the next one, with the same settings, continues.

`prepare` and `regenerate` work in <destination>.partial until they are done (peagle_core.atomic); whoever comes after a
killed run goes on there.
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
from trainer.storage.settings import refuse_other_settings

SETTINGS = "settings.json"


@contextmanager
def locked(directory: Path, verb: str) -> Iterator[None]:
    """Make the directory and keep other processes out of it; the lock ends with this process, however that ends.

    Raises InputError when another process has locked it.
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
    """Lock the directory for the block and yield it, opened.

    Raises BlockingIOError where another process has locked it and `wait` is off.
    """
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


def resume_or_begin(directory: Path, settings: dict[str, Any]) -> None:
    """Remove what a killed run was writing in the locked directory; where none with settings ran, empty it.

    Raises ConfigError naming the first setting that differs from the earlier run's.
    """
    path = directory / SETTINGS
    remove_leftovers(directory)
    if path.is_file():
        refuse_other_settings(directory, json.loads(path.read_bytes()), settings)
    else:
        for stray in directory.iterdir():
            stray.unlink(missing_ok=True)
        replace_file(path, json.dumps(settings, indent=1).encode())
