"""Read and write the index of a directory of shards: what they hold, what made them, and the checksum of every file.

Prepared data and stored hidden states are such directories: shard-00000.safetensors, ... and index.json,

    {"format": 1, "settings": {...}, "shards": [{"file": "shard-00000.safetensors", "sha256": "...", ...}, ...]}

with the entries of files beside the shards, if there are any, under names of their own before "shards". An index is
written, whole, after everything that it lists, so what is not listed is unfinished and what is listed is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peagle_core.atomic import replace_file
from peagle_core.errors import InputError

INDEX = "index.json"
# What the index says of a file; more than "file" and "sha256" depends on what it holds.
Entry = dict[str, Any]
ENTRY_TYPES = {"file": str, "sha256": str, "bytes": int}


@dataclass(frozen=True)
class Contents:
    """What the shards of one kind of directory hold.

    name, remedy: for messages, what it is and how it is made again; format: the number of its layout; settings: their
    names, None for any; entry: what must be said of every shard, of ENTRY_TYPES; others: names of files beside them.
    """

    name: str
    remedy: str
    format: int = 1
    settings: frozenset[str] | None = None
    entry: tuple[str, ...] = ("file", "sha256")
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """What index.json says. others: entries of the files beside the shards, by name."""

    settings: dict[str, Any]
    shards: list[Entry]
    others: Mapping[str, Entry] = field(default_factory=dict)


def shard_name(number: int) -> str:
    """Return the name of the file that is shard `number`, from 0."""
    return f"shard-{number:05d}.safetensors"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(directory: Path, contents: Contents, index: Index) -> None:
    """Write index.json whole. Raises OSError when the disk does not take it."""
    record = {"format": contents.format, "settings": index.settings, **index.others, "shards": index.shards}
    replace_file(directory / INDEX, (json.dumps(record, indent=1) + "\n").encode())


def read_index(directory: Path, contents: Contents) -> Index:
    """Read index.json; the files that it lists are not looked at.

    Raises InputError when it cannot be read, is no index of these contents, or has another format.
    """
    path = directory / INDEX
    try:
        record = json.loads(path.read_bytes())
        found = Index(dict(record["settings"]), record["shards"], {name: record[name] for name in contents.others})
        same_format = record["format"] == contents.format
        for entry in found.shards:
            _check_types(entry, contents.entry)
        for entry in found.others.values():
            _check_types(entry, ("file", "sha256"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is no index of {contents.name}") from None
    if not same_format or contents.settings not in (None, frozenset(found.settings)):
        raise InputError(
            f"{path}: has format {record['format']}, this version reads {contents.format}; {contents.remedy} again"
        )
    return found


def check_files(directory: Path, contents: Contents, index: Index) -> None:
    """Raise InputError naming the first listed file that cannot be read or has another checksum."""
    for entry in (*index.shards, *index.others.values()):
        path = directory / entry["file"]
        try:
            found = sha256_of(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if found != entry["sha256"]:
            raise InputError(
                f"{path}: is damaged, its checksum is not the one in {INDEX}; "
                f"remove {directory} and {contents.remedy} again"
            )


def _check_types(entry: Entry, keys: tuple[str, ...]) -> None:
    """Raise KeyError or TypeError where the entry does not say one of the keys."""
    for key in keys:
        if not isinstance(entry[key], ENTRY_TYPES[key]):
            raise TypeError(key)
