"""Rotary tables of a head, from transformers' own frequencies: those that it was trained with.

SGLang's classes read some of the keys that transformers knows and pass over others (`attention_factor`), so each kind
would differ somewhere. Only the kernels that apply the table are SGLang's.
"""

from __future__ import annotations

import torch
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from torch import Tensor

from peagle_core.config import PEagleConfig
from peagle_core.drafter import rotary_embedding
from peagle_core.errors import InputError

# Kinds that change all frequencies once a text is longer than a bound, which keys in a cache cannot follow
LENGTH_DEPENDENT = ("dynamic", "longrope")


class HeadRope(RotaryEmbedding):
    """SGLang's rotary embedding with transformers' frequencies and its factor on cosine and sine."""

    cos_sin_cache: Tensor

    def __init__(self, config: PEagleConfig) -> None:
        rope = rotary_embedding(config)
        self.frequencies = rope.inv_freq.detach().cpu().float()
        self.factor = float(rope.attention_scaling)
        theta = config.rope_parameters["rope_theta"]
        super().__init__(
            config.head_dim, config.head_dim, config.max_position_embeddings, theta, True, torch.get_default_dtype()
        )

    def _compute_inv_freq(self, base: float) -> Tensor:
        return self.frequencies

    def _compute_cos_sin_cache(self) -> Tensor:
        return self._rows(0, self.max_position_embeddings)

    def _ensure_cos_sin_cache_length(self, needed_max_pos: int) -> None:
        """Compute the table up to a position; SGLang asks for the longest that may come up, before graphs."""
        table = self.cos_sin_cache
        if needed_max_pos >= len(table):
            more = self._rows(len(table), needed_max_pos + 1).to(table)
            self.cos_sin_cache = torch.cat([table, more])

    def _rows(self, start: int, end: int) -> Tensor:
        angles = torch.outer(torch.arange(start, end, dtype=torch.float32, device="cpu"), self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=-1).mul(self.factor).to(torch.get_default_device())


def check_rope(config: PEagleConfig, context_length: int) -> None:
    """Raise InputError for a rope that no table serves. context_length: tokens of the longest text."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if 2 * len(rotary_embedding(config).inv_freq) != config.head_dim:
        raise InputError(
            f"rope type {kind!r} with partial_rotary_factor {rope.get('partial_rotary_factor')} turns a part of each "
            f"attention head only, which no P-EAGLE drafter does"
        )
    if kind not in LENGTH_DEPENDENT:
        return
    bound = config.max_position_embeddings if kind == "dynamic" else rope["original_max_position_embeddings"]
    if context_length > bound:
        raise InputError(
            f"rope type {kind!r} changes all frequencies for texts of more than {bound} tokens, which keys in a cache "
            f"cannot follow: serve the head with --context-length {bound}, not {context_length}"
        )
