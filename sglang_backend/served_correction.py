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
from peagle_core.told import MATCHES, NONE, TOKENS, outright


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

    def forward(
        self, logits: Tensor, normed: Tensor, told: Sequence[Tensor], found: Tensor, match: Tensor,
        draft_of: Tensor | None, vocab_size: int,
    ) -> Tensor:  # fmt: skip
        """Correct the logits of bs rows, [bs, draft vocabulary], in place.

        normed: [bs, H], their states after the final norm; told: TOKENS times [bs, H], the normed embeddings of the
        last tokens of their chains, the newest first, and of the one found, zeros where there is none; the others, and
        what is returned, as in `correct_logits`.
        """
        *recent, of_found = told
        x = torch.cat([normed, *recent, of_found + self.match_embed(match)], -1)
        features = self.act_fn(self.gate_up_proj(x)[0])
        added = self.lm_head(features)[0]
        correct = correct_logits
        if logits.is_cuda:
            from sglang_backend.kernels.chain import correct
        return correct(logits, added, features, self.copy_weight, self.copy_bias, found, match, draft_of, vocab_size)


def draft_ids_of(token_ids: Tensor, draft_of: Tensor | None, vocab_size: int) -> Tensor:
    """Return the draft ids of target ids or NONE, NONE where there is none: int64[...] -> int64[...].

    draft_of: int64[vocab_size + 1] of `peagle_core.draft_vocabulary.draft_ids`, None without a draft vocabulary.
    """
    if draft_of is None:
        return torch.where(token_ids < vocab_size, token_ids, NONE)
    return draft_of[token_ids.clamp(max=vocab_size)]  # NONE is its last entry, too


def correct_logits(
    logits: Tensor, added: Tensor, features: Tensor, copy_weight: Tensor, copy_bias: Tensor, found: Tensor,
    match: Tensor, draft_of: Tensor | None, vocab_size: int,
) -> Tensor:  # fmt: skip
    """Add W2 f and, to the token found, c to logits [bs, V_d] in place; the reference of `kernels.chain.correct`.

    added: [bs, V_d], W2 f; features: [bs, r]; copy_weight: [r]; copy_bias: [1 + MATCHES]; found: int64[bs], target ids
    or NONE; match: int64[bs]; draft_of, vocab_size: see `draft_ids_of`. Returns bool[bs]: where found is drafted
    outright (`peagle_core.told`), whatever the logits are.
    """
    draft_id = draft_ids_of(found, draft_of, vocab_size)
    logits += added
    amount = (features @ copy_weight + copy_bias[match]) * (draft_id >= 0)
    logits.scatter_add_(1, draft_id.clamp(min=0)[:, None], amount[:, None].to(logits.dtype))
    return outright(found, match, draft_id)
