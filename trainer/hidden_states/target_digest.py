"""Compute which target hidden states belong to, as a digest that no other model shares.

It takes no second pass over the weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils import cached_file

from peagle_core.errors import InputError, first_line
from peagle_core.tensors import weight_files

SAMPLE = 4096  # bytes read of each tensor
NO_MATTER = ("_name_or_path", "transformers_version")  # of config.json


def target_digest(target: str) -> str:
    """Return a digest of the target's config.json and of every tensor's name, dtype, shape and first 4 KiB.

    The same for a copy, for a hub name and its directory, and however the weights are divided into files. Raises
    InputError when the files cannot be read or are no safetensors.
    """
    try:
        found = cached_file(target, "config.json")
        assert found is not None
        config = json.loads(Path(found).read_bytes())
        tensors = sorted(line for path in weight_files(Path(found).parent) for line in _tensors(path))
    except (OSError, ValueError) as error:
        raise InputError(f"target {target!r}: its files cannot be read ({first_line(error)})") from None
    digest = hashlib.sha256()
    kept = {key: value for key, value in config.items() if key not in NO_MATTER}
    for line in [json.dumps(kept, sort_keys=True), *tensors]:
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _tensors(path: Path) -> list[str]:
    """Return a line for every tensor of a safetensors file: the header's length in 8 bytes, the header (JSON), data."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        lines = []
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            sample = hashlib.sha256(file.read(min(SAMPLE, end - begin))).hexdigest()
            lines.append(json.dumps([name, entry["dtype"], entry["shape"], sample]))
    return lines
