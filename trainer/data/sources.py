"""Read records from .jsonl, .json and .txt files and Hugging Face datasets, as a whole or in parts.

A dataset is a file of a table (parquet, for one), a directory (`save_to_disk`, or files that `datasets.load_dataset`
knows) or hf:NAME, from the hub; hf:NAME:SPLIT takes another split than train, hf:NAME:CONFIGURATION:SPLIT also another
configuration. A part is what one worker reads without reading the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from peagle_core.errors import InputError, one_line
from trainer.data.source_names import ARRAY, HUB, LINES, TEXT, is_hub, table_builder

BOM = b"\xef\xbb\xbf"


class Record(NamedTuple):
    """where: its place; content: decoded, or the error that says why it cannot be."""

    where: str
    content: Any


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
    return is_hub(source) or Path(source).is_dir() or table_builder(source) is not None


def survey(source: str, records_per_part: int) -> Survey:
    """Divide a source into parts, and digest it. Raises InputError when the source cannot be read or holds nothing."""
    if is_dataset(source):
        dataset = _dataset(source)
        starts = range(0, len(dataset), records_per_part)
        parts = [Part(source, i, min(records_per_part, len(dataset) - i)) for i in starts]
        digest = str(dataset._fingerprint)
    elif Path(source).suffix == TEXT:
        parts, digest = [Part(source, 0, 1)], _survey_lines(source, 1)[1]
    elif (rows := _array(source)) is not None:
        starts = range(0, len(rows), records_per_part)
        parts = [Part(source, i, min(records_per_part, len(rows) - i)) for i in starts]
        digest = _survey_lines(source, 1)[1]
    else:
        parts, digest = _survey_lines(source, records_per_part)
    if not parts:
        raise InputError(f"{source}: is empty")
    return Survey(parts, digest)


def count_records(source: str) -> int | None:
    """Return how many records `read` will give at most, for a progress bar; None where the source cannot be read."""
    if is_dataset(source):
        return len(_dataset(source))
    if Path(source).suffix == TEXT:
        return 1
    try:
        if (rows := _array(source)) is not None:
            return len(rows)
        with Path(source).open("rb") as file:
            return sum(1 for _ in file)
    except OSError:
        return None


def read(part: Part) -> Iterator[Record]:
    """Yield every record of the part with its place. Raises InputError for a source that cannot be read."""
    if is_dataset(part.source):
        yield from _read_rows(part)
        return
    path = Path(part.source)
    try:
        if path.suffix == TEXT:
            yield Record(str(path), _text_record(path.read_bytes()))
        elif (rows := _array(part.source)) is not None:
            stop = len(rows) if part.count is None else part.first + part.count
            for number in range(part.first, stop):
                yield Record(f"{path}, record {number}", rows[number])
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
            yield Record(f"{path}:{part.first + number + 1}", _json_record(line))


def _json_record(line: bytes) -> Any:
    """Return what a line of JSON says, or why it says nothing."""
    try:
        return json.loads(_decode(line))
    except InputError as error:
        return error
    except RecursionError:
        return InputError("not valid JSON (nested too deeply)")
    except ValueError as error:  # one that is not JSON's own is of a number with thousands of digits
        return InputError(f"not valid JSON ({getattr(error, 'msg', 'a number is too long')})")


def _text_record(data: bytes) -> Any:
    try:
        return {"text": _decode(data)}
    except InputError as error:
        return error


def _decode(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises InputError."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        marked = " (it is UTF-16; save it as UTF-8)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(f"not valid UTF-8{marked}") from None


def _read_rows(part: Part) -> Iterator[Record]:
    dataset = _dataset(part.source)
    stop = len(dataset) if part.count is None else part.first + part.count
    for number in range(part.first, stop):
        yield Record(f"{part.source}, row {number}", _without_none(dataset[number]))


def _without_none(value: Any) -> Any:
    """Drop what is None: rows have every column and every key of a struct, also those that a record does not have."""
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


@lru_cache(maxsize=4)
def _dataset(source: str) -> Any:
    import datasets  # seconds, and most runs have no dataset

    name, *more = source.removeprefix(HUB).split(":") if is_hub(source) else [source]
    split = more[-1] if more else "train"
    builder = None if is_hub(source) or Path(source).is_dir() else table_builder(source)
    try:
        if len(more) > 2:
            raise ValueError(f"it has more than {HUB}NAME:CONFIGURATION:SPLIT")
        if builder is not None:
            return datasets.load_dataset(builder, data_files=name, split="train")
        if (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name)[split]
        if (Path(name) / "state.json").is_file():
            return datasets.load_from_disk(name)
        if len(more) == 1 and split in _configurations(name):
            return datasets.load_dataset(name, split, split="train")
        return datasets.load_dataset(name, *more[:-1], split=split)
    except Exception as error:  # of the hub, of the network, of file formats: each library raises its own
        if builder is not None:
            raise InputError(f"{source}: cannot be read ({one_line(error)})") from None
        raise InputError(
            f"{source}: no dataset with a split {split!r} can be loaded ({one_line(error)}); "
            f"{HUB}NAME:CONFIGURATION:SPLIT names one"
        ) from None


def _configurations(name: str) -> list[str]:
    """Return the configurations of a dataset that has several, else none."""
    import datasets

    found = datasets.get_dataset_config_names(name)
    return found if len(found) > 1 else []


@lru_cache(maxsize=2)
def _array(source: str) -> list[Any] | None:
    """Return the records of a file that is one array, also one called .jsonl; None for other files.

    Raises OSError, InputError.
    """
    if Path(source).suffix not in (ARRAY, LINES):
        return None
    with Path(source).open("rb") as file:
        if not file.read(64).removeprefix(BOM).lstrip().startswith(b"["):
            return None
    found: Any = _json_record(Path(source).read_bytes())
    if isinstance(found, InputError):
        if Path(source).suffix == LINES:  # its first line is odd, or all of it
            return None
        raise InputError(f"{source}: {found}")
    assert isinstance(found, list)
    return found
