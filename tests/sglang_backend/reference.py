"""What the server drafted, beside what the reference loop drafts at the same place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import DraftCache, draft_logits
from peagle_core.target import run_target
from tools.server import Server, ask_all


def recorded_passes(records: Path, after: int = 0) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """(rid, known, drafts [K], logits [K, V_d]) of every request in every pass since number `after`."""
    for path in sorted(records.glob("pass-*.safetensors"))[after:]:
        with safe_open(path, "pt") as file:
            rids = json.loads(file.metadata()["rids"])
            tensors = {name: file.get_tensor(name) for name in ("known", "drafts", "logits")}
        for i, rid in enumerate(rids):
            yield rid, int(tensors["known"][i]), tensors["drafts"][i], tensors["logits"][i]


@torch.no_grad()
def reference_logits(target: PreTrainedModel, drafter: PEagleDrafter, ids: Tensor, num_draft_tokens: int) -> Tensor:
    """[K, V_d]: the drafts that follow the known tokens `ids`, computed without any cache."""
    aux_ids = drafter.config.aux_layer_ids_for(target.config.num_hidden_layers)
    _, aux = run_target(target, ids[None, :-1], aux_ids)
    return draft_logits(drafter, DraftCache(), ids[1:], aux[0], num_draft_tokens, 0)


def check_drafts(
    server: Server, records: Path, target: PreTrainedModel, drafter: PEagleDrafter, prompts: list[list[int]],
    num_draft_tokens: int, max_new_tokens: int = 30, concurrency: int = 1,
) -> list[Tensor]:  # fmt: skip
    """Generate, and hold every recorded draft against the reference -> the known tokens of each compared pass."""
    seen = len(list(records.glob("*")))
    answers = ask_all(server, prompts, max_new_tokens, concurrency)
    texts = {a["meta_info"]["id"]: (len(p), p + a["output_ids"]) for p, a in zip(prompts, answers, strict=True)}
    compared = []
    for rid, known, drafts, logits in recorded_passes(records, seen):
        prompt_length, tokens = texts.get(rid, (0, []))
        if not prompt_length < known <= len(tokens):
            continue  # a chunk that does not end its prompt drafts nothing; the last step runs past the request's limit
        ids = torch.tensor(tokens[:known])
        reference = reference_logits(target, drafter, ids, num_draft_tokens)
        torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)
        best = reference.argmax(-1)
        assert torch.equal(drafts, best + drafter.d2t[best])
        compared.append(ids)
    return compared
