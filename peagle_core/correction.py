"""The correction: what the text and the drafts before it add to the logits of a draft, so that drafts know each other.

One pass gives the rows of all K drafts at once, so none of them knows which tokens the drafts before it became. A
correction of rank r adds W2 f to the logits of each row, and to that of the token `found` a number c more. f, r
features, is a gated unit that reads the row's own state and what `peagle_core.told` tells it: the embeddings of the
last tokens of its chain and of the one found, and how long the match is; c is linear in f, with a bias for each length.
While training these are known, and all rows are corrected at once (`widened`); while drafting, K small steps follow the
pass (`peagle_core.generate.choose_drafts`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peagle_core.config import PEagleConfig
from peagle_core.loss import Copied
from peagle_core.told import MATCHES, TOKENS


class Told(NamedTuple):
    """What rows are told, as their correction reads it.

    embeddings: [..., TOKENS, H], zero for NONE; found, match: int64[...], see `peagle_core.told`; draft_id: int64[...],
    that of the token found, -1 where there is none or it has no logit.
    """

    embeddings: Tensor
    found: Tensor
    match: Tensor
    draft_id: Tensor


class Correction(nn.Module):
    """gate_proj, up_proj [r, (1 + TOKENS) H], which give f; W2, lm_head [V_d, r]; match_embed [1 + MATCHES, H].

    copy_weight [r], copy_bias [1 + MATCHES], which give c. W2 and all that has to do with matches is zero until it is
    trained.
    """

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()
        width, rank = (1 + TOKENS) * config.hidden_size, config.correction_rank
        self.embed_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.match_embed = nn.Embedding(1 + MATCHES, config.hidden_size)
        self.gate_proj = nn.Linear(width, rank, bias=False)
        self.up_proj = nn.Linear(width, rank, bias=False)
        self.lm_head = nn.Linear(rank, config.draft_vocab_size, bias=False)
        self.copy_weight = nn.Parameter(torch.zeros(rank))
        self.copy_bias = nn.Parameter(torch.zeros(1 + MATCHES))
        nn.init.zeros_(self.match_embed.weight)
        nn.init.zeros_(self.lm_head.weight)

    def features(self, normed: Tensor, told: Told) -> Tensor:
        """Return f of rows, [..., r]. normed: [..., H], their states after the final norm."""
        *recent, found = self.embed_norm(told.embeddings).unbind(-2)
        x = torch.cat([t.to(normed.dtype) for t in (normed, *recent, found + self.match_embed(told.match))], -1)
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def copied(self, features: Tensor, told: Told) -> Copied:
        """Return what the logits of the tokens found get more. features: [..., r]."""
        amount = features.to(self.copy_weight.dtype) @ self.copy_weight + self.copy_bias[told.match]
        return Copied(told.draft_id.clamp(min=0), amount * (told.draft_id >= 0))

    def forward(self, logits: Tensor, normed: Tensor, told: Told) -> Tensor:
        """Return the corrected logits of rows, [..., V_d]. logits: of the pass; the others as in `features`."""
        features = self.features(normed, told)
        return self.copied(features, told).add_to(logits + self.lm_head(features))

    def widened(self, normed: Tensor, head: Tensor, told: Told) -> tuple[Tensor, Tensor, Copied]:
        """Return ([M, H + r], [V_d, H + r]), whose product with what is copied is the corrected logits of M rows.

        head: [V_d, H]; the others as in `features`.
        """
        features = self.features(normed, told).to(normed.dtype)
        wide = torch.cat([head, self.lm_head.weight.to(head.dtype)], -1)
        return torch.cat([normed, features], -1), wide, self.copied(features, told)
