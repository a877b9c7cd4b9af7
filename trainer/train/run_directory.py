"""The JSON files of a run directory that `export` passes on: data.json and metrics.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.sections import DataConfig
from trainer.data.documents import Document
from trainer.inputs import RunInputs
from trainer.parallel.processes import is_main


def write_record(path: Path, record: dict[str, Any]) -> None:
    """By the first process."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def data_summary(data: DataConfig, inputs: RunInputs, num_rows: int) -> dict[str, Any]:
    """What the drafter learns from and is measured on, in numbers."""
    train = {**_counts(data.train, inputs.train), "rows": num_rows, "row_length": data.row_length}
    return {"train": train, "heldout": _counts(data.heldout, inputs.heldout)}


def _counts(sources: Sequence[Any], documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "files": [str(source) for source in sources],
        "documents": len(documents),
        "tokens": sum(len(document) for document in documents),
        "generated_tokens": sum(int(document.loss_mask.sum()) for document in documents),
    }
