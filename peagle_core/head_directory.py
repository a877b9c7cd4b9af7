"""Where the files of a head are: what servers and tools take as `HEAD`."""

from __future__ import annotations

import functools
from pathlib import Path

from peagle_core.errors import InputError, first_line

FILES = ["*.json", "*.safetensors"]


@functools.cache
def head_directory(head: str, revision: str | None = None) -> Path:
    """Return the directory of a head that is given as one, or by its name on the Hugging Face hub.

    revision: branch, tag or commit on the hub, its main branch by default. Raises InputError when it is neither.
    """
    path = Path(head).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{head} is a file; a head is a directory with config.json and *.safetensors")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(head, revision=revision, allow_patterns=FILES))
    except Exception as error:  # of the hub's client, of its HTTP client, or of a cache that is not there
        of = f" of revision {revision}" if revision else ""
        raise InputError(
            f"{head}: no such directory, nor a model{of} on the Hugging Face hub ({first_line(error)})"
        ) from None
