"""The JSON files of a run directory: data.json, metrics.json and eval.json, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peagle_core.atomic import replace_file
from peagle_core.errors import InputError
from trainer.config.sections import DataConfig
from trainer.data.documents import Document
from trainer.inputs import RunInputs
from trainer.parallel.processes import is_main


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON record, whole or not at all, in the first process only."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(record, indent=2) + "\n").encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON record; None where there is none. Raises InputError when it is no JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error.msg})") from None


def data_summary(data: DataConfig, inputs: RunInputs, num_rows: int) -> dict[str, Any]:
    """Count what the drafter learns from and is measured on."""
    train = {**_counts(data.train, inputs.train), "rows": num_rows, "row_length": data.row_length}
    return {"train": train, "heldout": _counts(data.heldout, inputs.to_answer)}


def _counts(sources: Sequence[Any], documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "files": [str(source) for source in sources],
        "documents": len(documents),
        "tokens": sum(len(document) for document in documents),
        "generated_tokens": sum(int(document.loss_mask.sum()) for document in documents),
    }
