"""The correction: what the text and the drafts before it add to the logits of a draft, so that drafts know each other.

One pass gives the rows of all K drafts at once, so none of them knows which tokens the drafts before it became. A
correction of rank r adds W2 f to the logits of each row. f, r features, is a gated unit that reads the row's own state
and the embeddings of the `TOLD` tokens of `peagle_core.told`: the last of its chain, and what followed them before.
While training these are known, and all rows are corrected at once (`widened`); while drafting, K small steps follow the
pass (`peagle_core.generate.choose_drafts`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peagle_core.config import PEagleConfig
from peagle_core.told import TOLD


class Correction(nn.Module):
    """gate_proj, up_proj [r, (1 + TOLD) H], which give f; W2, lm_head [V_d, r], zero until it is trained."""

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()
        width, rank = (1 + TOLD) * config.hidden_size, config.correction_rank
        self.embed_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gate_proj = nn.Linear(width, rank, bias=False)
        self.up_proj = nn.Linear(width, rank, bias=False)
        self.lm_head = nn.Linear(rank, config.draft_vocab_size, bias=False)
        nn.init.zeros_(self.lm_head.weight)

    def features(self, normed: Tensor, embeddings: Tensor) -> Tensor:
        """Return f of rows, [..., r].

        normed: [..., H], their states after the final norm; embeddings: [..., TOLD, H], zero for NONE.
        """
        x = torch.cat([normed, self.embed_norm(embeddings).flatten(-2).to(normed.dtype)], -1)
        return F.silu(self.gate_proj(x)) * self.up_proj(x)

    def forward(self, normed: Tensor, embeddings: Tensor) -> Tensor:
        """Return what is added to the logits of rows, [..., V_d]. Arguments as in `features`."""
        return self.lm_head(self.features(normed, embeddings))

    def widened(self, normed: Tensor, head: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return ([M, H + r], [V_d, H + r]), whose product is the corrected logits of M rows.

        head: [V_d, H]; the others as in `features`.
        """
        features = self.features(normed, embeddings).to(normed.dtype)
        return torch.cat([normed, features], -1), torch.cat([head, self.lm_head.weight.to(head.dtype)], -1)
