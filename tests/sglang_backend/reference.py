"""What the server drafted, beside what the reference loop drafts at the same place."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from peagle_core.drafter import PEagleDrafter
from peagle_core.generate import drafts_of
from tools.bench.parity.compare import recorded_passes, reference_logits
from tools.server import Server, ask_all


def check_drafts(
    server: Server, records: Path, target: PreTrainedModel, drafter: PEagleDrafter, prompts: list[list[int]],
    num_draft_tokens: int, max_new_tokens: int = 30, concurrency: int = 1, tolerance: float = 1e-4,
) -> list[Tensor]:  # fmt: skip
    """Generate, and hold every recorded draft against the reference -> the known tokens of each compared pass."""
    seen = len(list(records.glob("*")))
    answers = ask_all(server, prompts, max_new_tokens, concurrency)
    texts = {a["meta_info"]["id"]: (len(p), p + a["output_ids"]) for p, a in zip(prompts, answers, strict=True)}
    compared = []
    for drawn in recorded_passes(records, seen):
        prompt_length, tokens = texts.get(drawn.rid, (0, []))
        if not prompt_length < drawn.known <= len(tokens):
            continue  # a chunk that does not end its prompt drafts nothing; the last step runs past the request's limit
        ids = torch.tensor(tokens[: drawn.known])
        assert len(drawn.drafts) == num_draft_tokens
        reference = reference_logits(target, drafter, ids, drawn.drafts)
        torch.testing.assert_close(drawn.logits, reference, atol=tolerance, rtol=tolerance)
        assert torch.equal(drawn.drafts, drafts_of(drafter, reference, ids, drawn.drafts))
        compared.append(ids)
    return compared
