"""What the numbers of a checkpoint mean: resuming a run that means something else by them is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from peagle_core.config_formats import config_record
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from trainer.config import RunConfig
from trainer.data.packing import PackedRow


def make_contract(config: RunConfig, drafter: PEagleDrafter, rows: Sequence[PackedRow]) -> dict[str, Any]:
    """Return what must stay the same in a resumed run: the drafter, the draw of elements, the data and its order."""
    return {
        "algorithm": config.algorithm,
        "drafter": config_record(drafter.config, "float32"),
        "draft vocabulary": _digest([drafter.d2t]),
        "retention": config.drafter.retention,
        "retention_min": config.drafter.retention_min,
        "seed": config.seed,
        "optimizer": config.optim.optimizer,
        "data": _digest(t for row in rows for t in (row.input_ids, row.loss_mask, row.doc_ids)),
    }


def check_contract(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError naming the first entry that differs. path: the checkpoint whose contract is `then`."""
    now, then = ({**x, **x["drafter"], "drafter": None} for x in (json.loads(json.dumps(now)), then))
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{path}: was trained with {key} = {then.get(key)}, this run says {now.get(key)}; "
                "resume with the same value or choose another output_dir"
            )


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
