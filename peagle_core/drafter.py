"""The drafter: an EAGLE-3 head of N Llama layers whose future rows read a learned mask token and hidden state.

Layer 0 attends over [input_layernorm(embedding), hidden_norm(fused state)] (2H wide) and continues the fused state
as its residual; layers >= 1 are plain Llama layers. Attention itself is a callback, so that one forward serves the
flat training pass, streaming against cached keys, and the serve-time loop. Module names are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from peagle_core.config import PEagleConfig
from peagle_core.correction import Correction, Told
from peagle_core.draft_vocabulary import draft_ids, draft_vocab_ids
from peagle_core.hidden_state_designs import make_design
from peagle_core.loss import Copied
from peagle_core.told import NONE, TOKENS, outright

# (layer index, q [N,h,D], k [N,hk,D], v [N,hk,D]) -> [N,h,D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding, NeoX half rotation. x: [N, heads, D]; cos, sin: [N, D]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None] + turned * sin[:, None]


class Attention(nn.Module):
    """Grouped-query attention with input width `in_size` (2H in layer 0); the scores are the callback's business."""

    def __init__(self, config: PEagleConfig, in_size: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_size, kv_size = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(in_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(in_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(in_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        return self.o_proj(attend(q, k, v).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A Llama layer; with `fused=True` the first one, which also reads the token embedding."""

    def __init__(self, config: PEagleConfig, fused: bool) -> None:
        super().__init__()
        self.norm_residual = config.norm_before_residual
        self.self_attn = Attention(config, 2 * config.hidden_size if fused else config.hidden_size)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps) if fused else None

    def forward(self, embed: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        residual = hidden
        if self.hidden_norm is not None:
            normed = self.hidden_norm(hidden)
            x = torch.cat([self.input_layernorm(embed), normed], dim=-1)
            residual = normed if self.norm_residual else hidden
        else:
            x = self.input_layernorm(hidden)
        hidden = residual + self.self_attn(x, cos, sin, attend)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class PEagleDrafter(nn.Module):
    """Named as in the checkpoint: fc, mask_hidden [1,1,3H_t], embed_tokens, layers.*, norm, lm_head; buffer d2t.

    With config.correction_rank also the tensors of `peagle_core.correction`.
    An EAGLE-3 head (config.autoregressive) has no mask_hidden; the rest is the same.
    """

    d2t: Tensor
    mask_hidden: nn.Parameter | None

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__()
        self.config = config
        eps = config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.input_norm = nn.RMSNorm(config.fused_size, eps) if config.norm_before_fc else None
        norms = [nn.RMSNorm(config.target_hidden_size, eps) for _ in range(3)] if config.fc_norm else None
        self.fc_norm = None if norms is None else nn.ModuleList(norms)
        self.fc = nn.Linear(config.fused_size, config.hidden_size, bias=False)
        self.mask_hidden = None if config.autoregressive else nn.Parameter(torch.randn(1, 1, config.fused_size))
        self.layers = nn.ModuleList(Layer(config, fused=i == 0) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        # Offset form: target id = draft id + d2t[draft id]. All zero while the vocabularies are equal.
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
        self.rotary = rotary_embedding(config)
        self.hidden_design = make_design(config)
        self.correction = Correction(config) if config.correction_rank else None  # last: other weights drawn as ever

    def fuse(self, aux: Tensor) -> Tensor:
        """Project concatenated aux target states (or mask_hidden): [..., 3H_t] -> [..., H]."""
        if self.input_norm is not None:
            aux = self.input_norm(aux)
        if self.fc_norm is not None:
            parts = aux.chunk(3, dim=-1)
            aux = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return self.fc(aux)

    def input_rows(
        self, token_ids: Tensor, aux: Tensor, is_mask: Tensor, source: Tensor, depth: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings and fused states of N rows, each real (slot `source`) or a mask row.

        token_ids: int64[S] input tokens of the real slots; aux: [S, 3H_t] their states; is_mask: bool[N];
        source: int64[N] index into the S slots, of mask rows too (0 where there is no slot). Returns two [N, H]. Only a
        hidden-state design other than P-EAGLE's heeds the source of a mask row, its anchor, and depth: int64[N];
        without depth it adds nothing. Of an EAGLE-3 head all rows must be real.
        """
        mask_token_id = self.config.mask_token_id
        if self.mask_hidden is None or mask_token_id is None:
            return self.embed_tokens(token_ids[source]), self.fuse(aux)[source]
        num_slots = token_ids.shape[0]
        mask_id = token_ids.new_full((1,), mask_token_id)
        row = torch.where(is_mask, num_slots, source)
        # Projected together, so that mask_hidden takes the path of every real state (norms included).
        fused = self.fuse(torch.cat([aux, self.mask_hidden.view(1, -1).to(aux.dtype)]))
        embed = self.embed_tokens(torch.cat([token_ids, mask_id])[row])
        # Not fused[row]: thousands of rows read the mask state, and in bfloat16 an index adds their gradients up in
        # bfloat16 (mask_hidden's was 57 % off at 2000 rows), a broadcast in float32.
        states = torch.where(is_mask[:, None], fused[num_slots], fused[source])
        if self.hidden_design is not None and depth is not None:
            added = self.hidden_design(fused[source[is_mask]], depth[is_mask])
            states = states.index_add(0, is_mask.nonzero().squeeze(-1), added.to(states.dtype))
        return embed, states

    def forward(
        self, embed: Tensor, fused: Tensor, positions: Tensor, attend: Attend, recompute: bool = False
    ) -> Tensor:
        """Run one pass over N rows; return their states [N, H] before the final norm.

        embed, fused: [N, H]; positions: int64[N] (rotary).
        recompute: keep each layer's input only and run the layer again in the backward pass.
        """
        cos, sin = (x[0].to(embed.dtype) for x in self.rotary(embed, positions[None]))
        hidden = fused
        for i, layer in enumerate(self.layers):
            inputs = embed, hidden, cos, sin, partial(attend, i)
            hidden = checkpoint(layer, *inputs, use_reentrant=False) if recompute else layer(*inputs)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of states, without the correction: [..., H] -> [..., draft_vocab_size]."""
        return self.lm_head(self.norm(hidden))

    def corrected_logits(self, normed: Tensor, told: Tensor | None) -> Tensor:
        """Return the logits of rows with the correction, if there is one, [..., draft_vocab_size].

        normed: [..., H], their states after the final norm; told: int64[..., TOLD], see `peagle_core.told`, None
        without a correction.
        """
        logits = self.lm_head(normed)
        return logits if self.correction is None or told is None else self.correction(logits, normed, self.read(told))

    def loss_factors(self, hidden: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor, Copied | None]:
        """Return [M, F] and [V_d, F], whose product is the logits of M rows, and what is added to one logit of each.

        So the fused loss takes them; together these are the corrected logits.

        hidden: [M, H], their states before the final norm; told: as in `corrected_logits`.
        """
        normed, head = self.norm(hidden), self.lm_head.weight
        if self.correction is None or told is None:
            return normed, head, None
        return self.correction.widened(normed, head, self.read(told))

    def read(self, told: Tensor) -> Told:
        """Look up what rows are told. told: int64[..., TOLD]."""
        tokens, match = told[..., :TOKENS], told[..., -1]
        embeddings = self.embed_tokens(tokens.clamp(min=0)) * (tokens != NONE)[..., None]
        found = tokens[..., -1]
        return Told(embeddings, found, match, self._draft_id(found))

    def _draft_id(self, token_ids: Tensor) -> Tensor:
        """Return the draft ids of target ids or NONE, NONE where there is none."""
        return draft_ids(draft_vocab_ids(self.d2t), self.config.vocab_size)[token_ids]

    def outright(self, told: Tensor) -> Tensor:
        """Return bool[...]: rows whose draft is the token found (`told.outright`). told: int64[..., TOLD]."""
        found, match = told[..., TOKENS - 1], told[..., -1]
        return outright(found, match, self._draft_id(found))

    def chosen(self, logits: Tensor, told: Told | None) -> Tensor:
        """Return the drafts of rows, int64[...], target ids: the argmax, or the token found, drafted outright.

        logits: [..., draft_vocab_size], corrected; told: what the rows are told, None without a correction.
        """
        best = self.target_ids(logits.argmax(-1))
        if told is None:
            return best
        return torch.where(outright(told.found, told.match, told.draft_id), told.found, best)

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """Map draft vocabulary ids to target vocabulary ids."""
        return draft_ids + self.d2t[draft_ids]


def rotary_embedding(config: PEagleConfig) -> LlamaRotaryEmbedding:
    """Return the rotary embedding of a drafter: transformers', for every kind and key of rope that it knows."""
    rope = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=dict(config.rope_parameters),
    )
    return LlamaRotaryEmbedding(rope)
