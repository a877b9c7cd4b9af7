"""python -m sglang_backend.kernel_check: the kernels of a decode step on this GPU beside torch, bit by bit.

On random batches; SGLang's argmax is among them. `tools.bench parity` runs it before its first server.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from sglang.kernels.ops.speculative.row_argmax import row_argmax
from torch import Tensor

from peagle_core.draft_vocabulary import draft_ids
from peagle_core.errors import InputError, run_command
from peagle_core.told import MATCHES, NONE, REACH, Matches
from sglang_backend.draft_inputs import DecodeRows, fill_rows, hidden_rows
from sglang_backend.kernels import chain, draft_rows
from sglang_backend.served_correction import correct_logits

BATCHES = [(k, bs, more) for k in (1, 3, 5, 7) for bs in (1, 2, 5, 48) for more in (0, 3)]
WIDTHS = (512, 576, 2880, 4096)  # of a head
VOCABULARIES = (32000, 151936)
TABLE = 257  # positions of a request, some of which the rows pass
CHAINS = [(bs, width) for bs in (1, 5, 48) for width in (64, 1025, REACH)]
DRAFT_VOCABULARY, RANK = 8192, 256


def check_kernels(device: torch.device, batches: list[tuple[int, int, int]] = BATCHES) -> str:
    """Run every kernel of a decode step -> what was compared. Raises InputError at the first that differs.

    batches: (K, requests, padded requests more).
    """
    generator = torch.Generator(device=device).manual_seed(0)
    _check_rows(generator, batches)
    _check_chains(generator)
    return (
        f"kernels: ok: rows of {len(batches)} batches, states of {len(WIDTHS)} widths, argmax of 2 vocabularies, "
        f"chains of {len(CHAINS)} batches"
    )


def _integers(generator: torch.Generator, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape, generator=generator, device=generator.device, dtype=dtype)


def _check_rows(generator: torch.Generator, batches: list[tuple[int, int, int]]) -> None:
    """Compare what builds the batch of a pass, and SGLang's argmax."""
    device, integers = generator.device, partial(_integers, generator)
    for k, bs, more in batches:
        verified = max(1, k - more)
        batch: dict[str, Any] = {
            "next_token_ids": integers(0, 49152, bs * (verified + 1), dtype=torch.int32),
            "accept_lens": integers(1, verified + 2, bs, dtype=torch.int32), "seq_lens": integers(1, TABLE, bs),
            "req_pool_indices": torch.randperm(400, generator=generator, device=device)[:bs],
            "req_to_token": integers(1, 2**20, 401, TABLE, dtype=torch.int32), "num_draft_tokens": k,
            "mask_token_id": 7, "num_verified": verified,
        }  # fmt: skip
        ours, theirs = (DecodeRows.allocate(bs + more, k, device) for _ in range(2))
        draft_rows.expand(ours, **batch)
        fill_rows(theirs, **batch)
        for field in fields(DecodeRows):
            _same(getattr(ours, field.name), getattr(theirs, field.name), f"{field.name} of K={k}, {bs} requests")
    for width in WIDTHS:
        states, mask = torch.randn(64, width, device=device), torch.randn(1, width, device=device)
        source = integers(-1, 64, 96)
        read = draft_rows.read(states, mask, source, torch.empty(96, width, device=device))
        _same(read, torch.where((source >= 0)[:, None], states[source.clamp(min=0)], mask), f"states of {width}")
        _same(hidden_rows(states, mask, source), read, f"states of {width} by the model's own call")
    for vocabulary in VOCABULARIES:
        for rows in (1, 5, 80):  # SGLang's kernel for few rows, and its other one
            logits = integers(0, 1000, rows, vocabulary).float()  # with equals: the first of them counts
            _same(row_argmax(logits), logits.argmax(-1), f"the argmax of {rows} rows of {vocabulary}")


def _check_chains(generator: torch.Generator) -> None:
    """Compare what makes drafts follow from each other, for a head with a correction."""
    device, integers, size = generator.device, partial(_integers, generator), VOCABULARIES[0]
    for bs, width in CHAINS:
        text = integers(0, 5, bs, width)
        text[0, : width // 2] = NONE
        ours, theirs = chain.SoughtMatches(text), Matches(text)
        for drafts in range(3):
            for found, reference in zip(ours.best(), theirs.best(), strict=True):
                _same(found, reference, f"what {bs} requests of {width} tokens found behind {drafts} drafts")
            token = integers(0, 5, bs)
            ours.follow(token)
            theirs.follow(token)
        table = torch.randperm(size, generator=generator, device=device)[:DRAFT_VOCABULARY]
        case: dict[str, Any] = {
            "added": torch.randn(bs, len(table), device=device), "features": torch.randn(bs, RANK, device=device),
            "copy_weight": torch.randn(RANK, device=device), "copy_bias": torch.randn(1 + MATCHES, device=device),
            "found": integers(NONE, size, bs), "match": integers(0, 1 + MATCHES, bs),
            "draft_of": draft_ids(table, size), "vocab_size": size,
        }  # fmt: skip
        corrected, reference = (torch.ones(bs, len(table), device=device) for _ in range(2))
        _same(chain.correct(corrected, **case), correct_logits(reference, **case), f"what is outright of {bs} rows")
        distance = float((corrected - reference).abs().max())
        if distance > 1e-3:  # sums in another order
            raise InputError(f"kernels: the corrected logits of {bs} rows: {distance} apart")


def _same(ours: Tensor, theirs: Tensor, what: str) -> None:
    if not torch.equal(ours, theirs):
        place = (ours != theirs).nonzero()[0].tolist()
        raise InputError(f"kernels: {what}: differs first at {place}: {ours[tuple(place)]}, not {theirs[tuple(place)]}")


if __name__ == "__main__":
    sys.exit(run_command(lambda: print(check_kernels(torch.device("cuda")))))
