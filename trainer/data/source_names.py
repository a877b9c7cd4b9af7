"""Read the names of sources as people write them: several in one value, patterns, a home directory."""

from __future__ import annotations

import glob
from pathlib import Path

HUB = "hf:"
LINES, TEXT, ARRAY = ".jsonl", ".txt", ".json"
# What the `datasets` library reads, by the end of a file's name: its builder.
TABLES = {
    ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".json.gz": "json", ".jsonl.gz": "json",
    ".json.zst": "json", ".jsonl.zst": "json",
}  # fmt: skip
KINDS = f"{LINES}, {ARRAY}, {TEXT}, {', '.join(TABLES)}, a directory, or {HUB}NAME"


def expand(value: str) -> list[str]:
    """Return the sources that a value names, in order; files need not exist.

    A name that exists is taken as it is; else commas divide names, and `*`, `?` and `[` make patterns, whose files come
    in the order of their names. Raises ValueError for a pattern that no file matches.
    """
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    if Path(path).exists():
        return [path]
    if "," in value:
        return [source for name in value.split(",") if name.strip() for source in expand(name.strip())]
    if value.startswith(HUB) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise ValueError(f"no file matches {value}")
    return found


def is_hub(source: str) -> bool:
    """Tell whether a source is named as a dataset of the hub, or as one with a configuration or split."""
    return source.startswith(HUB)


def table_builder(source: str) -> str | None:
    """Return what of the `datasets` library reads a file; None for other files."""
    return next((builder for end, builder in TABLES.items() if source.endswith(end)), None)


def check_kind(source: str) -> None:
    """Raise ValueError for a file that is not there or of a kind that is not read."""
    if is_hub(source) or Path(source).is_dir():
        return
    if not Path(source).is_file():
        raise ValueError(f"no such file: {source} (a dataset on the hub is {HUB}NAME)")
    if Path(source).suffix not in (LINES, TEXT, ARRAY) and table_builder(source) is None:
        raise ValueError(f"{source} is of no kind that is read: {KINDS}")
