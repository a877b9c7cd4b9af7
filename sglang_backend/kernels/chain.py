"""What each draft of a chain needs beside its products, in two launches: `told.Matches`, and a correction's logits.

In torch a draft takes 47 launches, nearly all of them tiny; these two kernels take the place of 33.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from peagle_core.told import LONGEST, MATCHES, NONE, SURE, Matches

PLACES = 1024
COLUMNS = 1024


@triton.jit
def seek_rows(
    TEXT, TOKEN, BEFORE, LENGTHS, FOUND, MATCH, width, FIRST: tl.constexpr, LONGEST: tl.constexpr,
    MATCHES: tl.constexpr, NONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find where the end of a chain stood in its text before; one program a request.

    TEXT: int64[bs, width]; LENGTHS: int32[bs, width], of the match that ends at each place but the last, written here.
    FIRST: the chain is the text itself; else BEFORE, int32[bs, width], are the lengths without its last token TOKEN,
    int64[bs]. FOUND, MATCH: int64[bs], as of `told.Matches.best`.
    """
    request = tl.program_id(0).to(tl.int64)
    TEXT += request * width
    token = tl.load(TOKEN + request)
    best = 0  # match * width + place: of equally long ones the last
    for start in range(0, width - 1, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < width - 1
        if FIRST:
            length = tl.zeros([BLOCK], tl.int32)
            same = inside
            for back in range(LONGEST):
                last = tl.load(TEXT + width - 1 - back, mask=back < width, other=NONE)
                here = tl.load(TEXT + place - back, mask=inside & (place >= back), other=NONE)
                same = same & (here == last) & (last != NONE)
                length += same.to(tl.int32)
        else:
            before = tl.load(BEFORE + request * width + place - 1, mask=inside & (place > 0), other=0)
            same = tl.load(TEXT + place, mask=inside, other=NONE) == token
            length = tl.where(same & inside, before + 1, 0)
        tl.store(LENGTHS + request * width + place, length, mask=inside)
        match = tl.zeros([BLOCK], tl.int32)
        for doubling in tl.static_range(MATCHES):
            match += (length >= 2**doubling).to(tl.int32)
        best = tl.maximum(best, tl.max(tl.where(inside, match * width + place, 0), 0))
    found = tl.load(TEXT + best % width + 1, mask=best >= width, other=NONE)
    tl.store(FOUND + request, found)
    tl.store(MATCH + request, (best // width).to(tl.int64))


class SoughtMatches(Matches):
    """Compute `told.Matches` in one launch a draft. text: int64[bs, W] on a GPU."""

    def __init__(self, text: Tensor) -> None:
        self.text = text.contiguous()
        self._seek(self.text, self.text, first=True)

    def follow(self, token: Tensor) -> None:
        """Add a draft to each chain. token: int64[bs]."""
        self._seek(token, self.lengths, first=False)

    def best(self) -> tuple[Tensor, Tensor]:
        """Return found and match, int64[bs] each, of the chain's end."""
        return self.found, self.match

    def _seek(self, token: Tensor, before: Tensor, first: bool) -> None:
        bs, width = self.text.shape
        self.lengths = torch.empty(bs, width, dtype=torch.int32, device=self.text.device)
        self.found, self.match = torch.empty(2, bs, dtype=torch.int64, device=self.text.device)
        block = min(PLACES, triton.next_power_of_2(width))
        if bs:
            seek_rows[(bs,)](
                self.text, token, before, self.lengths, self.found, self.match, width, FIRST=first, LONGEST=LONGEST,
                MATCHES=MATCHES, NONE=NONE, BLOCK=block,
            )  # fmt: skip


@triton.jit
def correct_rows(
    LOGITS, ADDED, FEATURES, COPY_WEIGHT, COPY_BIAS, FOUND, MATCH, DRAFT_OF, OUTRIGHT, vocab, stride, size, rank,
    HAS_TABLE: tl.constexpr, SURE: tl.constexpr, NONE: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to the logits of a row what a correction says, and say whether its draft is the token found.

    LOGITS: rows of `vocab` at a distance of `stride`; ADDED: [bs, vocab]; FEATURES: [bs, rank]; COPY_WEIGHT: [rank];
    COPY_BIAS: [1 + MATCHES]; FOUND, MATCH: int64[bs]; DRAFT_OF: int64[size + 1], unread without HAS_TABLE; OUTRIGHT:
    uint8[bs]. RANKS: a power of two >= rank. Grid (bs, blocks of columns).
    """
    row = tl.program_id(0).to(tl.int64)
    found, match = tl.load(FOUND + row), tl.load(MATCH + row)
    known = (found != NONE) & (found < size)
    draft_id = tl.load(DRAFT_OF + found, mask=known, other=NONE) if HAS_TABLE else tl.where(known, found, NONE)
    feature = tl.arange(0, RANKS)
    features = tl.load(FEATURES + row * rank + feature, mask=feature < rank, other=0.0).to(tl.float32)
    weight = tl.load(COPY_WEIGHT + feature, mask=feature < rank, other=0.0).to(tl.float32)
    amount = tl.sum(features * weight, 0) + tl.load(COPY_BIAS + match).to(tl.float32)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < vocab
    logits = tl.load(LOGITS + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    logits += tl.load(ADDED + row * vocab + column, mask=inside, other=0.0).to(tl.float32)
    logits += tl.where(column == draft_id, amount, 0.0)
    tl.store(LOGITS + row * stride + column, logits.to(LOGITS.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(OUTRIGHT + row, ((draft_id == NONE) & (found != NONE) & (match >= SURE)).to(tl.uint8))


def correct(
    logits: Tensor, added: Tensor, features: Tensor, copy_weight: Tensor, copy_bias: Tensor, found: Tensor,
    match: Tensor, draft_of: Tensor | None, vocab_size: int,
) -> Tensor:  # fmt: skip
    """Compute `served_correction.correct_logits` in one launch; logits, [bs, V_d], may be strided rows."""
    (bs, vocab), rank = logits.shape, features.shape[1]
    outright = torch.empty(bs, dtype=torch.bool, device=logits.device)
    block = min(COLUMNS, triton.next_power_of_2(vocab))
    if bs:
        correct_rows[(bs, triton.cdiv(vocab, block))](
            logits, added, features, copy_weight, copy_bias, found, match, found if draft_of is None else draft_of,
            outright.view(torch.uint8), vocab, logits.stride(0), vocab_size, rank, HAS_TABLE=draft_of is not None,
            SURE=SURE, NONE=NONE, RANKS=triton.next_power_of_2(rank), BLOCK=block,
        )  # fmt: skip
    return outright
