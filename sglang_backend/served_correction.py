"""The correction of `peagle_core.correction` on SGLang's layers, which each platform computes in its own way.

Whole on every rank: the states it reads are, and the logits it is added to after SGLang has gathered them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from peagle_core.config import PEagleConfig
from peagle_core.told import MATCHES, TOKENS


class ServedCorrection(nn.Module):
    def __init__(self, head: PEagleConfig, prefix: str) -> None:
        super().__init__()
        rank, width = head.correction_rank, (1 + TOKENS) * head.hidden_size
        self.embed_norm = RMSNorm(head.hidden_size, eps=head.rms_norm_eps)
        self.gate_up_proj = MergedColumnParallelLinear(
            width, [rank] * 2, bias=False, prefix=add_prefix("gate_up_proj", prefix), parallel_group="replicated"
        )
        self.act_fn = SiluAndMul()
        self.lm_head = ReplicatedLinear(rank, head.draft_vocab_size, bias=False, prefix=add_prefix("lm_head", prefix))
        self.match_embed = nn.Embedding(1 + MATCHES, head.hidden_size)
        self.copy_weight = nn.Parameter(torch.zeros(rank))
        self.copy_bias = nn.Parameter(torch.zeros(1 + MATCHES))
        self.requires_grad_(False)

    def forward(self, logits: Tensor, normed: Tensor, told: Sequence[Tensor], match: Tensor, draft_id: Tensor) -> None:
        """Correct the logits of bs rows, [bs, draft vocabulary], in place.

        normed: [bs, H], their states after the final norm; told: TOKENS times [bs, H], the normed embeddings of the
        last tokens of their chains, the newest first, and of what followed them before, zeros where there is none;
        match, draft_id: int64[bs], see `peagle_core.correction.Told`.
        """
        *recent, found = told
        features = self.act_fn(self.gate_up_proj(torch.cat([normed, *recent, found + self.match_embed(match)], -1))[0])
        logits += self.lm_head(features)[0]
        amount = (features @ self.copy_weight + self.copy_bias[match]) * (draft_id >= 0)
        logits.scatter_add_(1, draft_id.clamp(min=0)[:, None], amount[:, None].to(logits.dtype))
