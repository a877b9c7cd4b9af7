"""The correction of `peagle_core.correction` on SGLang's linear layers, which each platform multiplies in its own way.

Whole on every rank: the states it reads are, and the logits it is added to after SGLang has gathered them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from peagle_core.config import PEagleConfig
from peagle_core.correction import RECENT


class ServedCorrection(nn.Module):
    def __init__(self, head: PEagleConfig, prefix: str) -> None:
        super().__init__()
        width, rank = (1 + RECENT) * head.hidden_size, head.correction_rank

        def linear(name: str, inputs: int, outputs: int) -> ReplicatedLinear:
            return ReplicatedLinear(inputs, outputs, bias=False, prefix=add_prefix(name, prefix))

        self.embed_norm = nn.RMSNorm(head.hidden_size, head.rms_norm_eps)
        self.gate_proj, self.up_proj = linear("gate_proj", width, rank), linear("up_proj", width, rank)
        self.lm_head = linear("lm_head", rank, head.draft_vocab_size)
        self.requires_grad_(False)

    def forward(self, normed: Tensor, embeddings: Tensor) -> Tensor:
        """Return what is added to the logits of rows, as `Correction.forward` does."""
        x = torch.cat([normed, self.embed_norm(embeddings).flatten(-2)], -1)
        return self.lm_head(F.silu(self.gate_proj(x)[0]) * self.up_proj(x)[0])[0]
