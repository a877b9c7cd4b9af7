"""Read records from .jsonl and .txt files and Hugging Face datasets, as a whole or in parts.

A dataset is a directory (`save_to_disk`, or files that `datasets.load_dataset` knows, parquet for one) or hf:NAME, from
the hub; hf:NAME:SPLIT takes another split than train. A part is what one worker reads without reading the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError, one_line

HUB = "hf:"
# (place, decoded record)
Record = tuple[str, Any]


@dataclass(frozen=True)
class Part:
    """`count` lines or rows of a source from number `first` on (from 0); None: to the end. offset: its first byte."""

    source: str
    first: int = 0
    count: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Survey:
    """The parts of a source, in order, and a digest of all of it."""

    parts: list[Part]
    digest: str


def is_dataset(source: str) -> bool:
    return source.startswith(HUB) or Path(source).is_dir()


def survey(source: str, records_per_part: int) -> Survey:
    """Divide a source into parts, and digest it. Raises InputError when the source cannot be read or holds nothing."""
    if is_dataset(source):
        dataset = _dataset(source)
        starts = range(0, len(dataset), records_per_part)
        parts = [Part(source, i, min(records_per_part, len(dataset) - i)) for i in starts]
        digest = str(dataset._fingerprint)
    elif Path(source).suffix == ".txt":
        parts, digest = [Part(source, 0, 1)], _survey_lines(source, 1)[1]
    else:
        parts, digest = _survey_lines(source, records_per_part)
    if not parts:
        raise InputError(f"{source}: is empty")
    return Survey(parts, digest)


def count_records(source: str) -> int | None:
    """Return how many records `read` will give at most, for a progress bar; None where the source cannot be read."""
    if is_dataset(source):
        return len(_dataset(source))
    if Path(source).suffix == ".txt":
        return 1
    try:
        with Path(source).open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return None


def read(part: Part) -> Iterator[Record]:
    """Yield every record of the part with its place. Raises InputError naming the place of what cannot be decoded."""
    if is_dataset(part.source):
        yield from _read_rows(part)
        return
    path = Path(part.source)
    try:
        if path.suffix == ".txt":
            yield str(path), {"text": _decode(path.read_bytes(), str(path))}
        else:
            yield from _read_lines(path, part)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _survey_lines(source: str, records_per_part: int) -> tuple[list[Part], str]:
    parts, digest, offset, number = [], hashlib.sha256(), 0, 0
    try:
        with Path(source).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if (number - 1) % records_per_part == 0:
                    parts.append(Part(source, number - 1, records_per_part, offset))
                digest.update(line)
                offset += len(line)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    if parts:
        last = parts.pop()
        parts.append(Part(source, last.first, number - last.first, last.offset))
    return parts, digest.hexdigest()[:16]


def _read_lines(path: Path, part: Part) -> Iterator[Record]:
    with path.open("rb") as file:
        file.seek(part.offset)
        for number, line in enumerate(file):
            if number == part.count:
                return
            if not line.strip():
                continue
            where = f"{path}:{part.first + number + 1}"
            try:
                record = json.loads(_decode(line, where))
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise InputError(f"{where}: not valid JSON ({reason})") from None
            yield where, record


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not valid UTF-8") from None


def _read_rows(part: Part) -> Iterator[Record]:
    dataset = _dataset(part.source)
    stop = len(dataset) if part.count is None else part.first + part.count
    for number in range(part.first, stop):
        yield f"{part.source}, row {number}", _without_none(dataset[number])


def _without_none(value: Any) -> Any:
    """Drop what is None: rows have every column and every key of a struct, also those that a record does not have."""
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


@lru_cache(maxsize=4)
def _dataset(source: str) -> Any:
    import datasets  # seconds, and most runs have no dataset

    name, _, split = source.removeprefix(HUB).partition(":")
    split = split or "train"
    try:
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)[split]
        if (Path(name) / "state.json").is_file():
            return datasets.load_from_disk(name)
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # of the hub, of the network, of file formats: each library raises its own
        raise InputError(f"{source}: no dataset with a split {split!r} can be loaded ({one_line(error)})") from None
