"""Where the files of a head are."""

from __future__ import annotations

import functools
from pathlib import Path

from peagle_core.errors import InputError, first_line


@functools.cache
def head_directory(path: str) -> Path:
    """Return the directory of a head that is given as one, or by its name on the Hugging Face hub.

    Raises InputError when it is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise InputError(
            f"{path}: no such directory, nor a model on the Hugging Face hub ({first_line(error)})"
        ) from None
