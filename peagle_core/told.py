"""What a correction tells a row: the last tokens of its chain, and what followed when the text last had the same two.

A row predicts the token behind its chain: the newest token s_n of the verified text, then the drafts before this one.
It is told the last `RECENT` tokens of the chain, and `found`: where the last two tokens, of chain and text together,
stood side by side in the verified text before, the token that followed them the last time. Names, numbers and phrases
that a text repeats are found so; an autoregressive drafter finds them by attention, with the draft it has read.

The first token of a text is left out of the search (a server's drafter never reads it), and so is what lies more than
`REACH` tokens back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RECENT = 3  # tokens of the chain that a row is told; more than its depth + 1 there are not
TOLD = RECENT + 1
REACH = 4096
NONE = -1  # in the place of a token that there is not


def told_of_chain(text: Tensor, chain: Tensor) -> Tensor:
    """Return what each row of one pass is told, int64[K, TOLD]: the newest token first, `found` last.

    text: int64[n + 1], s_0 to s_n; chain: int64[K], s_n and then the drafts that the others follow.
    """
    recent = F.pad(chain, (RECENT - 1, 0), value=NONE).unfold(-1, RECENT, 1).flip(-1)
    window = F.pad(text[1:], (REACH, 0), value=NONE)[-REACH:]
    before = torch.cat([window[-2:-1], chain[:-1]])
    return torch.cat([recent, found_in(window.expand(len(chain), -1), before, chain)[:, None]], -1)


def found_in(text: Tensor, before: Tensor, token: Tensor) -> Tensor:
    """Return the token that followed `before` and `token` the last time, int64[R], NONE where they did not stand there.

    text: int[R, W], of each row its verified text, right-aligned, NONE in front; before, token: int[R].
    """
    hit = (text[:, :-2] == before[:, None]) & (text[:, 1:-1] == token[:, None]) & (before != NONE)[:, None]
    place = torch.where(hit, torch.arange(hit.shape[1], device=hit.device), NONE).amax(1)
    followed = text.gather(1, (place + 2).clamp(min=2)[:, None])[:, 0]
    return torch.where(place == NONE, NONE, followed.long())


class ToldInTraining:
    """What the rows of a step are told: as `told_of_chain`, for any elements of one packed row.

    An element (a, d) predicts x_{a+d+2}: its text is x_{start} to x_{a+1}, its chain x_{a+1} to x_{a+d+1}.
    """

    def __init__(self, input_ids: Tensor, doc_starts: Tensor, vocab_size: int) -> None:
        """Index the pairs. input_ids: int64[n]; doc_starts: int64[n], index of the first token of each document."""
        self.input_ids, n = input_ids, len(input_ids)
        index = torch.arange(n, device=input_ids.device)
        pair = (doc_starts * vocab_size + input_ids.roll(1)) * vocab_size + input_ids
        # A pair with a document's first token, or across its border, is nobody's: it gets a number of its own.
        pair = torch.where(index - doc_starts >= 2, pair, -1 - index)
        self.number = pair.unique(return_inverse=True)[1]
        self.place = (self.number * n + index).sort().values  # by pair, then by place

    def __call__(self, anchor: Tensor, depth: Tensor) -> Tensor:
        """Return int64[M, TOLD]. anchor, depth: int64[M]."""
        back = torch.arange(RECENT, device=depth.device)
        last, n = anchor + depth + 1, len(self.input_ids)
        recent = torch.where(back <= depth[:, None], self.input_ids[(last[:, None] - back).clamp(min=0)], NONE)
        number = self.number[last]
        # The last place at or before the anchor: the token behind it is verified.
        found = self.place[(torch.searchsorted(self.place, number * n + anchor, right=True) - 1).clamp(min=0)]
        place = found % n
        is_same = (found // n == number) & (place <= anchor) & (place >= anchor + 3 - REACH)
        followed = torch.where(is_same, self.input_ids[(place + 1).clamp(max=n - 1)], NONE)
        return torch.cat([recent, followed[:, None]], 1)
