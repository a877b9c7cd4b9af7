"""Files and directories that are either complete or absent: written beside their name, flushed, renamed.

What is being written has one of two names:

* `.<name>.partial-<process id>` where several processes may write the same name (`new_file`, `new_directory`). What a
  killed one left is removed by the next that writes this name.
* `<name>.partial` for a directory that only one process at a time fills, and that the next one finds again: to go on
  in it (`partial_of`, `finish`), or to start anew (`new_directory` with existing="replace").
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

PARTIAL_SUFFIX = ".partial"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that replaces `path`, whole, when the block ends without an error.

    Any exception removes it, an interruption too.
    """
    _remove_left_by_killed(path)
    partial = _own_partial(path)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` whole, as `new_file` does."""
    with new_file(path) as partial:
        partial.write_bytes(data)


@contextmanager
def new_directory(path: str | Path, existing: Literal["refuse", "replace"] = "refuse") -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block ends without an error.

    "refuse": raises FileExistsError when `path` is there, before or after; any exception removes the new directory, an
    interruption too. "replace": only one process writes this name; what is at `path` is replaced whole, and an
    exception leaves `<path>.partial`, which other processes may still be filling, to the next attempt.
    """
    path = Path(path)
    _remove_left_by_killed(path)
    if existing == "replace":
        partial = partial_of(path)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _replace_directory(partial, path)
        return
    partial = _own_partial(path)
    _refuse_existing(path)
    partial.mkdir()
    try:
        yield partial
        finish(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def partial_of(path: Path) -> Path:
    """Return the name of what becomes `path`, which the next process finds again."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def finish(partial: Path, path: Path) -> None:
    """Flush a file or a whole directory and name it `path`, on the same file system.

    Raises FileExistsError when `path` is there.
    """
    _flush_all(partial)
    _refuse_existing(path)
    os.rename(partial, path)
    _flush(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left of `new_file` in a directory that nobody else is writing to."""
    for leftover in directory.glob(f".*{PARTIAL_SUFFIX}-*"):
        leftover.unlink(missing_ok=True)


def _replace_directory(partial: Path, path: Path) -> None:
    """Flush and rename, with what was at `path` moved aside and removed after."""
    _flush_all(partial)
    old = _own_partial(path)
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _own_partial(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL_SUFFIX}-{os.getpid()}")


def _remove_left_by_killed(path: Path) -> None:
    prefix = f".{path.name}{PARTIAL_SUFFIX}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_another_running(leftover.name.removeprefix(prefix)):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _is_another_running(process_id: str) -> bool:
    """Return whether it is a running process and not this one.

    In a container the next run often has the same id.
    """
    try:
        if int(process_id) == os.getpid():
            return False
        os.kill(int(process_id), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _flush_all(path: Path) -> None:
    for item in sorted(path.rglob("*")) if path.is_dir() else []:
        _flush(item)
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
