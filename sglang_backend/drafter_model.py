"""The P-EAGLE drafter as an SGLang model: the network of peagle_core.drafter on SGLang's parallel layers.

Not SGLang's LlamaForCausalLMEagle3: that class norms layers >= 1 with `hidden_norm`, P-EAGLE heads use
`input_layernorm` there. Rows are real or mask; a mask row reads the mask token's embedding and fc(mask_hidden),
which is computed once per weight load.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from sglang.srt.configs.draft_parallel import DraftParallelSpec, DraftTPExecution
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from sglang.srt.layers.logits_processor import LogitsMetadata, LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.models.llama import LlamaMLP
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from peagle_core.checkpoint import collect_part, collect_tensors, is_complete
from peagle_core.config import PEagleConfig
from peagle_core.draft_vocabulary import draft_ids, draft_vocab_ids
from peagle_core.head_directory import head_directory
from peagle_core.tensors import SHARED
from peagle_core.told import NONE
from sglang_backend.draft_inputs import hidden_rows
from sglang_backend.rope import HeadRope
from sglang_backend.served_correction import ServedCorrection, draft_ids_of
from sglang_backend.texts import Texts

STACKED = {  # checkpoint name -> (fused parameter, shard)
    "q_proj": ("qkv_proj", "q"),
    "k_proj": ("qkv_proj", "k"),
    "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


class Attention(nn.Module):
    def __init__(self, config: PEagleConfig, rope: HeadRope, in_size: int, layer_id: int, prefix: str) -> None:
        super().__init__()
        tp = get_parallel().tp_size
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_attention_heads // tp, max(1, config.num_key_value_heads // tp)
        self.sizes = [heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.head_dim]
        self.qkv_proj = QKVParallelLinear(
            in_size, self.head_dim, config.num_attention_heads, config.num_key_value_heads,
            bias=config.attention_bias, prefix=add_prefix("qkv_proj", prefix),
        )  # fmt: skip
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * self.head_dim, config.hidden_size,
            bias=config.attention_bias, prefix=add_prefix("o_proj", prefix),
        )  # fmt: skip
        self.rotary_emb = rope
        self.attn = RadixAttention(
            heads, self.head_dim, self.head_dim**-0.5, num_kv_heads=kv_heads, layer_id=layer_id,
            prefix=add_prefix("attn", prefix),
        )  # fmt: skip
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_norm else None

    def forward(self, positions: Tensor, x: Tensor, forward_batch, keep: Tensor | None = None) -> Tensor:
        """Attend with all rows; the output is that of the rows `keep`, None for all. -> [kept rows, H]."""
        q, k, v = self.qkv_proj(x)[0].split(self.sizes, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.reshape(-1, self.head_dim)).view(q.shape)
            k = self.k_norm(k.reshape(-1, self.head_dim)).view(k.shape)
        q, k = self.rotary_emb(positions, q, k)
        attended = self.attn(q, k, v, forward_batch)
        return self.o_proj(attended if keep is None else attended[keep])[0]


class Layer(nn.Module):
    def __init__(self, config: PEagleConfig, rope: HeadRope, layer_id: int, prefix: str) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.fused = layer_id == 0
        self.norm_residual = config.norm_before_residual
        in_size = 2 * size if self.fused else size
        self.self_attn = Attention(config, rope, in_size, layer_id, add_prefix("self_attn", prefix))
        self.mlp = LlamaMLP(size, config.intermediate_size, config.hidden_act, prefix=add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(size, eps=eps)
        self.post_attention_layernorm = RMSNorm(size, eps=eps)
        if self.fused:
            self.hidden_norm = RMSNorm(size, eps=eps)

    def forward(
        self, positions: Tensor, embed: Tensor, hidden: Tensor, forward_batch, keep: Tensor | None = None
    ) -> Tensor:
        """[rows, H] -> [kept rows, H]. keep: int64, the rows that anybody reads after this layer, None for all."""
        residual = hidden
        if self.fused:
            normed = self.hidden_norm(hidden)
            x = torch.cat([self.input_layernorm(embed), normed], dim=-1)
            residual = normed if self.norm_residual else hidden
        else:
            x = self.input_layernorm(hidden)
        hidden = (residual if keep is None else residual[keep]) + self.self_attn(positions, x, forward_batch, keep)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class PEagleModel(nn.Module):
    mask_fused: Tensor

    def __init__(self, config: PEagleConfig, prefix: str) -> None:
        super().__init__()
        eps = config.rms_norm_eps
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=add_prefix("embed_tokens", prefix)
        )
        self.input_norm = RMSNorm(config.fused_size, eps=eps) if config.norm_before_fc else None
        norms = [RMSNorm(config.target_hidden_size, eps=eps) for _ in range(3)] if config.fc_norm else None
        self.fc_norm = None if norms is None else nn.ModuleList(norms)
        self.fc = ReplicatedLinear(config.fused_size, config.hidden_size, bias=False, prefix=add_prefix("fc", prefix))
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, config.fused_size), requires_grad=False)
        self.register_buffer("mask_fused", torch.zeros(1, config.hidden_size), persistent=False)
        rope = HeadRope(config)  # one table for all layers
        self.layers = nn.ModuleList(
            Layer(config, rope, i, add_prefix(f"layers.{i}", prefix)) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=eps)

    def normed_states(self, aux: Tensor) -> Tensor:
        """Norm the target states of rows as the head wants them before fc, [rows, 3H_t]."""
        if self.input_norm is not None:
            aux = self.input_norm(aux.contiguous())
        if self.fc_norm is not None:
            parts = aux.chunk(3, dim=-1)
            aux = torch.cat([norm(x.contiguous()) for norm, x in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return aux

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch) -> Tensor:
        """[bs * K, H]: the sampled rows (`spec_info.select_index`). Others end with the last layer's attention."""
        spec_info = forward_batch.spec_info
        fused, _ = self.fc(self.normed_states(spec_info.hidden_states.to(self.fc.weight.dtype)))
        hidden = hidden_rows(fused, self.mask_fused, spec_info.source)
        embed = self.embed_tokens(input_ids)
        for layer in self.layers:
            keep = spec_info.select_index if layer is self.layers[-1] else None
            hidden = layer(positions, embed, hidden, forward_batch, keep)
        return hidden


class PEagleForCausalLM(nn.Module):
    draft_parallel_spec = DraftParallelSpec(tp_execution=DraftTPExecution.SINGLE_GROUP)

    def __init__(self, config, quant_config=None, prefix: str = "") -> None:
        """Build the model.

        quant_config: None; `server_args.validate` keeps the target's away and refuses one for the head.
        """
        super().__init__()
        self.config = config
        self.head = head = PEagleConfig.from_pretrained(head_directory(config.name_or_path))
        self.model = PEagleModel(head, add_prefix("model", prefix))
        self.lm_head = ParallelLMHead(head.draft_vocab_size, head.hidden_size, prefix=add_prefix("lm_head", prefix))
        self.correction = ServedCorrection(head, add_prefix("correction", prefix)) if head.correction_rank else None
        logits_config = copy.deepcopy(config)
        logits_config.vocab_size = head.draft_vocab_size
        self.logits_processor = LogitsProcessor(logits_config)
        # Target id of each draft id, and the other way round, where the vocabularies differ
        self.hot_token_id: Tensor | None = None
        self.draft_of: Tensor | None = None
        self.own: set[str] = set(SHARED)  # which of the shareable tensors the checkpoint brought itself
        self.loaded = False
        self.texts: Texts | None = None  # of all requests, where there is a correction, set beside the KV pool
        self.unknown_ids = False  # whether ids may come that the head's vocabulary has not, set beside the target

    @torch.no_grad()
    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch) -> LogitsProcessorOutput:
        """Return next_token_logits [bs * K, draft vocabulary] of the sampled rows (`spec_info.select_index`) only.

        A correction, if there is one, is not in them yet: `proposals` adds it, draft after draft, and hidden_states
        [bs * K, H], after the final norm, are what it reads.
        """
        if self.texts is not None:
            self.texts.write(forward_batch.out_cache_loc, input_ids)
        input_ids = self.known_ids(input_ids)
        if input_ids.numel() == 0:
            hidden = self.model.norm.weight.new_empty(0, self.head.hidden_size)
        else:
            hidden = self.model(input_ids, positions, forward_batch)
        hidden = self.model.norm(hidden)
        metadata = LogitsMetadata.from_forward_batch(forward_batch)
        logits = self.logits_processor._get_logits(hidden, self.lm_head, metadata)
        return LogitsProcessorOutput(logits, hidden_states=None if self.correction is None else hidden)

    def embedded(self, token_ids: Tensor) -> Tensor:
        """Return what the correction reads of tokens: int[bs], target ids -> [bs, H], zeros for NONE."""
        assert self.correction is not None
        rows = self.correction.embed_norm(self.model.embed_tokens(self.known_ids(token_ids.clamp(min=0))))
        return rows * (token_ids != NONE)[:, None]

    def correct(self, logits: Tensor, state: Tensor, told: Sequence[Tensor], found: Tensor, match: Tensor) -> Tensor:
        """Correct the logits of bs rows in place, see `ServedCorrection`. found: int64[bs], target ids or NONE.

        Returns bool[bs]: where found is drafted outright, whatever the logits are.
        """
        assert self.correction is not None
        return self.correction(logits, state, told, found, match, self.draft_of, self.head.vocab_size)

    def drafted_outright(self, drafts: Tensor) -> Tensor | None:
        """Return bool[...]: which of these drafts have no logit, target ids int64[...]; None without a correction."""
        return None if self.correction is None else draft_ids_of(drafts, self.draft_of, self.head.vocab_size) == NONE

    def known_ids(self, token_ids: Tensor) -> Tensor:
        """Replace ids that the head's vocabulary has not by the mask token's."""
        if not self.unknown_ids:
            return token_ids
        mask = self.head.mask_token_id
        assert mask is not None
        return torch.where(token_ids < self.head.vocab_size, token_ids, mask)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Load a whole head, or, once there is one, any part of it: an online update comes in buckets.

        Raises InputError for anything missing, misshapen or not finite, before anything is written. Of a part only bare
        names count: SGLang shows a drafter the target's tensors too, whose names begin with `model.`.
        """
        named = list(weights)
        if not self.loaded or is_complete([name for name, _ in named], self.head):
            tensors = collect_tensors(named, self.head, self.config.name_or_path)
            self.own = set(SHARED) & set(tensors)
        else:
            tensors = collect_part(named, self.head, "weight update")
            tensors = {name: tensor for name, tensor in tensors.items() if name not in SHARED or name in self.own}
        d2t = tensors.pop("d2t", None)
        if d2t is not None:
            target_ids = draft_vocab_ids(d2t.cpu())
            table = draft_ids(target_ids, self.head.vocab_size)
            if self.hot_token_id is None or self.draft_of is None:
                self.hot_token_id, self.draft_of = target_ids, table
            else:
                self.hot_token_id.copy_(target_ids)
                self.draft_of.copy_(table)
        parameters = dict(self.named_parameters())
        for name, tensor in tensors.items():
            outside = name.startswith(("lm_head.", "correction."))
            self._load(parameters, name if outside else f"model.{name}", tensor)
        self.loaded = True
        self.post_load_weights()

    def _load(self, parameters: dict[str, nn.Parameter], name: str, tensor: Tensor) -> None:
        for part, (fused, shard) in STACKED.items():
            if f".{part}." in name:
                parameter = parameters[name.replace(part, fused)]
                parameter.weight_loader(parameter, tensor, shard)  # type: ignore[attr-defined]
                return
        parameter = parameters[name]
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)

    @torch.no_grad()
    def post_load_weights(self) -> None:
        """Compute fc(mask_hidden), the same for every mask row of every request.

        In place, for captured graphs read it. By torch, for a layer may keep a packed copy of the weights, and more of
        them may be to come. SGLang calls it where weights arrive otherwise than through `load_weights`.
        """
        states = self.model.normed_states(self.model.mask_hidden.view(1, -1))
        self.model.mask_fused.copy_(F.linear(states, self.model.fc.weight))

    def share_with_target(self, embed: Tensor, head: Tensor) -> None:
        """Use the target's embedding or head where the checkpoint has none of its own, and work where they lie."""
        if self.hot_token_id is not None and self.draft_of is not None:
            self.hot_token_id, self.draft_of = self.hot_token_id.to(embed.device), self.draft_of.to(embed.device)
        if "embed_tokens.weight" not in self.own:
            self.model.embed_tokens.weight = embed
        if "lm_head.weight" not in self.own:
            self.lm_head.weight = head


EntryClass = [PEagleForCausalLM]
