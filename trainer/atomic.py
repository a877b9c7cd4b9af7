"""Directories that are either complete or absent: written beside their name, flushed, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block ends without an error.

    A crash leaves at most `<path>.partial` and `<path>.old.partial`, which the next attempt removes. An existing `path`
    is replaced whole.
    """
    path = Path(path)
    partial, old = (path.with_name(path.name + suffix) for suffix in (PARTIAL_SUFFIX, ".old" + PARTIAL_SUFFIX))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for item in sorted(partial.rglob("*")):
        _flush(item)
    _flush(partial)
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
