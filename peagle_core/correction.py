"""The correction: what draft j adds to the logits of draft j + 1, so that drafts of one pass know each other.

One pass gives the rows of all K drafts at once, so none of them knows which token the draft before it became. A
correction of rank r adds W2 W1[x] to the logits of each row, x being the token before the one that the row predicts: an
embedding over the target's vocabulary and a matrix over the draft vocabulary. While training, x is known, and all rows
are corrected at once (`widened`); while drafting, K tiny steps follow the pass (`peagle_core.generate.choose_drafts`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peagle_core.config import PEagleConfig


class Correction(nn.Module):
    """W1: embed_tokens [V, r], small random numbers. W2: lm_head [V_d, r], zero until it is trained."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()
        rank = config.correction_rank
        self.embed_tokens = nn.Embedding(config.vocab_size, rank)
        self.lm_head = nn.Linear(rank, config.draft_vocab_size, bias=False)
        # W2 learns from the first step on, for W1 is not zero; rows of W1 of about unit length.
        nn.init.normal_(self.embed_tokens.weight, std=rank**-0.5)
        nn.init.zeros_(self.lm_head.weight)

    def forward(self, previous: Tensor) -> Tensor:
        """Return what is added to the logits of rows. previous: int64[...], target ids -> [..., V_d]."""
        return self.lm_head(self.embed_tokens(previous))

    def widened(self, normed: Tensor, head: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Return ([M, H + r], [V_d, H + r]), whose product is the corrected logits of M rows.

        normed: [M, H], their states after the final norm; head: [V_d, H]; previous: int64[M], target ids.
        """
        features = self.embed_tokens(previous).to(normed.dtype)
        return torch.cat([normed, features], -1), torch.cat([head, self.lm_head.weight.to(head.dtype)], -1)
