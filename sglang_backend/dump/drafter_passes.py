"""Write every drafter pass to disk: `PEAGLE_RECORD_DIR=/some/dir python -m sglang.launch_server ...`.

For finding out why acceptance is low: each file holds the logits of one pass, to be compared with the reference loop
(peagle_core.generate) on the same tokens, as the parity tests do. It synchronises every step that it records; not for
production. With `PEAGLE_RECORD_RIDS=sample-` only passes with a request are recorded whose id (`rid`) begins so.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


class Recorder:
    """One file per pass, `pass-000000.safetensors`: logits [bs, K, V_d], drafts [bs, K] (target ids), known [bs].

    known[i] counts the tokens of request i known when it drafted, prompt and bonus token included; metadata `rids`
    names the requests. Passes without a request whose id begins with `prefix` are left out.
    """

    def __init__(self, directory: Path, prefix: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.prefix = prefix
        self.passes = 0

    def record(self, rids: list[str], known: Tensor, drafts: Tensor, logits: Tensor) -> None:
        if not any(rid.startswith(self.prefix) for rid in rids):
            return
        tensors = {
            "logits": logits.view(*drafts.shape, -1).float().cpu().contiguous(),
            "drafts": drafts.cpu().contiguous(),
            "known": known.cpu().contiguous(),
        }
        name = f"pass-{self.passes:06d}.safetensors"
        save_file(tensors, self.directory / name, metadata={"rids": json.dumps(rids)})
        self.passes += 1


def from_environment() -> Recorder | None:
    directory = os.environ.get("PEAGLE_RECORD_DIR")
    return Recorder(Path(directory), os.environ.get("PEAGLE_RECORD_RIDS", "")) if directory else None
