"""Directories and files that are either complete or absent: written beside their name, flushed, renamed.

`new_directory` replaces what was there (a checkpoint of the same step); `fresh_directory` never does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block ends without an error; see the two steps below."""
    path = Path(path)
    partial = start_directory(path)
    yield partial
    replace_directory(partial, path)


def start_directory(path: Path) -> Path:
    """An empty directory to fill, which `replace_directory` makes `path`.

    A crash leaves at most `<path>.partial` and `<path>.old.partial`, which the next attempt removes.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    for leftover in (partial, _old(path)):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def replace_directory(partial: Path, path: Path) -> None:
    """Flush everything in `partial` and give it its name; an existing `path` is replaced whole."""
    _flush_all(partial)
    if path.exists():
        os.rename(path, _old(path))
    os.rename(partial, path)
    _flush(path.parent)
    shutil.rmtree(_old(path), ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old" + PARTIAL_SUFFIX)


@contextmanager
def fresh_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path`, which must not exist, when the block ends without an error.

    Any exception removes it, an interruption too. A killed process leaves `.<name>.partial-<process id>`, which the
    next attempt removes. Raises FileExistsError when `path` is there, before or after.
    """
    prefix = f".{path.name}.partial-"
    for leftover in [item for item in path.parent.iterdir() if item.name.startswith(prefix)]:
        if not _is_running(leftover.name.removeprefix(prefix)):
            shutil.rmtree(leftover, ignore_errors=True)
    partial = path.with_name(f"{prefix}{os.getpid()}")
    _refuse_existing(path)
    partial.mkdir()
    try:
        yield partial
        _flush_all(partial)
        _refuse_existing(path)
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a file that becomes `path`, whole, when the block ends without an error.

    A killed process leaves `.<name>.partial-<process id>`; an error leaves nothing.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}-{os.getpid()}")
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


def remove_leftovers(directory: Path) -> None:
    """What killed processes left of `new_file` in a directory that nobody else is writing to."""
    for leftover in directory.glob(f".*{PARTIAL_SUFFIX}-*"):
        leftover.unlink(missing_ok=True)


def finish_directory(partial: Path, path: Path) -> None:
    """Flush everything in `partial` and give it its name. Raises OSError when `path` is there and not empty."""
    _flush_all(partial)
    os.rename(partial, path)
    _flush(path.parent)


def finish_file(partial: Path, path: Path) -> None:
    """Flush `partial` and give it its name, on the same file system. Raises FileExistsError when `path` is there."""
    _flush(partial)
    _refuse_existing(path)
    os.rename(partial, path)
    _flush(path.parent)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already")


def _is_running(process_id: str) -> bool:
    try:
        os.kill(int(process_id), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _flush_all(directory: Path) -> None:
    for item in sorted(directory.rglob("*")):
        _flush(item)
    _flush(directory)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
