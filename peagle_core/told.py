"""What a correction tells a row: the last tokens of its chain, and what followed where the text last read like this.

A row predicts the token behind its chain: the newest token s_n of the verified text, then the drafts before this one.
It is told the last `RECENT` tokens of the chain, `found` and `match`. The end of text and chain together is sought in
the verified text before: found is the token behind the longest match, of equally long ones the last; match says how
long it is, in doublings: 0 for none, m where at least 2^(m-1) tokens are the same, `LONGEST` at most. Names, numbers
and phrases that a text repeats are found so, and the longer the match, the surer that it goes on as before.

A draft vocabulary gives some tokens no logit. Where one of those is found behind a match of two tokens or more, it is
drafted outright, whatever the logits say (`outright`).

The first token of a text is left out of the search (a server's drafter never reads it), and so is what lies more than
`REACH` tokens back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RECENT = 3  # tokens of the chain that a row is told; more than its depth + 1 there are not
TOKENS = RECENT + 1  # and the one found
TOLD = TOKENS + 1  # and how long the match is
MATCHES = 6
LONGEST = 2 ** (MATCHES - 1)
REACH = 4096  # no less than LONGEST
NONE = -1  # in the place of a token that there is not
SURE = 2  # a match that is relied upon: two tokens or more


def outright(found: Tensor, match: Tensor, draft_id: Tensor) -> Tensor:
    """Return bool[...]: where the token found is the draft, for it has no logit and the match is long enough.

    found, match: int64[...], as a row is told; draft_id: int64[...], that of the token found, NONE outside of the draft
    vocabulary.
    """
    return (draft_id == NONE) & (found != NONE) & (match >= SURE)


class Matches:
    """Where the end of a chain stood in its verified text before, while drafts are added to it."""

    def __init__(self, text: Tensor) -> None:
        """Compare the end of each text with every place before. text: int[R, W], right-aligned, NONE in front."""
        self.text, self.index = text, torch.arange(text.shape[1] - 1, device=text.device, dtype=torch.int32)
        windows = F.pad(text, (LONGEST - 1, 0), value=NONE).unfold(1, LONGEST, 1)  # [R, W, LONGEST], ending at a place
        end = windows[:, -1:]
        differs = (windows[:, :-1] != end) | (end == NONE)
        number = torch.arange(1, LONGEST + 1, dtype=torch.int8, device=text.device)
        self.lengths = LONGEST - torch.where(differs, number, 0).amax(-1)  # [R, W - 1], of the match that ends there

    def follow(self, token: Tensor) -> None:
        """Add a draft to each chain. token: int[R]. A match goes on where the text has it, too, elsewhere it ends."""
        longer = F.pad(self.lengths[:, :-1] + 1, (1, 0), value=1).clamp(max=LONGEST)
        self.lengths = torch.where(self.text[:, :-1] == token[:, None], longer, 0)

    def best(self) -> tuple[Tensor, Tensor]:
        """Return found and match, int64[R] each, of the chain's end."""
        match = torch.frexp(self.lengths.float()).exponent  # doublings: of 2^(m-1) to 2^m - 1 it is m
        size = self.text.shape[1]
        key = (match * size + self.index).amax(1).long()
        match, place = key // size, key % size
        found = self.text.gather(1, place[:, None] + 1)[:, 0].long()
        return torch.where(match > 0, found, NONE), match


class ToldWhileDrafting:
    """What the rows of one pass are told, each when the drafts before it are there. The reference of the server."""

    def __init__(self, text: Tensor) -> None:
        """Begin with the row of draft 1. text: int64[n + 1], s_0 to s_n."""
        self.matches = Matches(F.pad(text[1:], (2, 0), value=NONE)[None, -REACH:])
        self.recent = [int(text[-1])]

    def follow(self, draft: Tensor) -> None:
        """Go to the next row. draft: int64, scalar, the target's id."""
        self.matches.follow(draft.view(1))
        self.recent.insert(0, int(draft))

    def __call__(self) -> Tensor:
        """Return what the row is told, int64[TOLD]."""
        recent = torch.tensor((self.recent + [NONE] * RECENT)[:RECENT], device=self.matches.text.device)
        return torch.cat([recent, *self.matches.best()])


def told_of_chain(text: Tensor, chain: Tensor) -> Tensor:
    """Return what each row of one pass is told, int64[K, TOLD].

    text: int64[n + 1], s_0 to s_n; chain: int64[K], s_n and then the drafts that the others follow.
    """
    told = ToldWhileDrafting(text)
    rows = [told()]
    for draft in chain[1:]:
        told.follow(draft)
        rows.append(told())
    return torch.stack(rows)


class ToldInTraining:
    """What the rows of a step are told: as `told_of_chain`, for any elements of one packed row.

    An element (a, d) predicts x_{a+d+2}: its text is x_{start} to x_{a+1}, its chain x_{a+1} to x_{a+d+1}.
    """

    def __init__(self, input_ids: Tensor, doc_starts: Tensor, vocab_size: int) -> None:
        """Index the runs of 1, 2, 4, ... tokens.

        input_ids: int64[n]; doc_starts: int64[n], index of the first token of each document.
        """
        self.input_ids, n = input_ids, len(input_ids)
        index = torch.arange(n, device=input_ids.device)
        number = doc_starts * vocab_size + input_ids
        self.runs: list[tuple[int, Tensor, Tensor]] = []
        for length in (2**m for m in range(MATCHES)):
            if length > 1:  # two halves, each of them known by its number
                number = number.roll(length // 2) * n + number
            # A run with a document's first token, or across its border, is nobody's: it gets a number of its own.
            number = torch.where(index - doc_starts >= length, number, -1 - index).unique(return_inverse=True)[1]
            self.runs.append((length, number, (number * n + index).sort().values))  # by run, then by place

    def __call__(self, anchor: Tensor, depth: Tensor) -> Tensor:
        """Return int64[M, TOLD]. anchor, depth: int64[M]."""
        back = torch.arange(RECENT, device=depth.device)
        last, n = anchor + depth + 1, len(self.input_ids)
        recent = torch.where(back <= depth[:, None], self.input_ids[(last[:, None] - back).clamp(min=0)], NONE)
        found, match = torch.full_like(last, NONE), torch.zeros_like(last)
        for m, (length, number, ordered) in enumerate(self.runs, start=1):
            own = number[last]
            # The last place at or before the anchor: the token behind it is verified.
            key = ordered[(torch.searchsorted(ordered, own * n + anchor, right=True) - 1).clamp(min=0)]
            place = key % n
            is_same = (key // n == own) & (place <= anchor) & (place >= anchor + 1 + length - REACH)
            found = torch.where(is_same, self.input_ids[(place + 1).clamp(max=n - 1)], found)
            match = torch.where(is_same, m, match)
        return torch.cat([recent, found[:, None], match[:, None]], 1)
