"""Keep a journal of finished records, in the order in which they were finished, and read it in the data's order.

A line is the record's number, a blank, its JSON and a line break. A killed process can leave one that has no end, the
last; it is cut off, and its record is asked again.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError

ABSENT = -1


class Journal:
    """A file of `total` records, numbered from 0. In memory are only the places of their lines, 8 bytes each.

    Raises InputError when a line in the middle is damaged.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path = path
        self.total = total
        self._places = array("q", [ABSENT]) * total
        self._size = self._done = 0
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._scan()

    def __len__(self) -> int:
        return self._done

    def __contains__(self, number: int) -> bool:
        return self._places[number] != ABSENT

    def append(self, number: int, record: dict[str, Any]) -> None:
        """Write a record. Raises OSError when the disk does not take all of it; then the journal has none of it."""
        assert number not in self
        line = b"%d %s\n" % (number, json.dumps(record, ensure_ascii=False).encode())
        try:
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            os.ftruncate(self._handle, self._size)
            raise
        self._note(number, len(line))

    def records(self) -> Iterator[bytes]:
        """Yield the JSON of every record with its line break, in order. Raises InputError for one that is not there."""
        with self.path.open("rb") as file:
            for number, place in enumerate(self._places):
                file.seek(max(place, 0))
                found, _, content = file.readline().partition(b" ")
                if place == ABSENT or found != b"%d" % number:
                    raise InputError(f"{self.path}: has no record {number}")
                yield content

    def close(self) -> None:
        os.close(self._handle)

    def _scan(self) -> None:
        with self.path.open("rb") as file:
            for count, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                number = self._number(line)
                if number is None or number in self:
                    raise InputError(f"{self.path}:{count}: is damaged; remove {self.path.parent} and start again")
                self._note(number, len(line))
        os.ftruncate(self._handle, self._size)

    def _number(self, line: bytes) -> int | None:
        number, _, content = line.partition(b" ")
        try:
            json.loads(content)
            return int(number) if 0 <= int(number) < len(self._places) else None
        except ValueError:
            return None

    def _note(self, number: int, length: int) -> None:
        self._places[number] = self._size
        self._size += length
        self._done += 1
