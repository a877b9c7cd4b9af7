"""A fresh drafter for a target: its shape and rotary embedding, a copy of its embedding, rows of its output head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peagle_core.config import PEagleConfig
from peagle_core.draft_vocabulary import offsets
from peagle_core.drafter import PEagleDrafter
from peagle_core.errors import InputError
from peagle_core.target import Ends, target_head
from trainer.config import RunConfig
from trainer.config.sections import DrafterConfig
from trainer.data.documents import Document
from trainer.data.prepared import PreparedDocuments
from trainer.data.vocabulary import NOTHING_ESSENTIAL, Essential, count_generated, most_frequent
from trainer.target.context import context_length
from trainer.target.load import embedding

# What a Llama rotary embedding over the whole head understands; the rest belongs to other architectures.
ROPE_KEYS = (
    "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_factor", "long_factor", "truncate",
)  # fmt: skip


def drafter_config(
    wanted: DrafterConfig, target: str, target_config: Any, mask_token_id: int | None, vocab_size: int
) -> PEagleConfig:
    """Derive the drafter's config from what is wanted and from the target's (a transformers config).

    target: its name or directory; mask_token_id: None for EAGLE-3. Raises InputError, one sentence.
    """
    text = target_config.get_text_config()
    heads = wanted.num_attention_heads or _required(text, "num_attention_heads", "drafter.num_attention_heads")
    width = _required(text, "hidden_size")
    shape = PEagleConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=wanted.intermediate_size or getattr(text, "intermediate_size", None) or 4 * width,
        num_hidden_layers=wanted.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=wanted.num_key_value_heads or getattr(text, "num_key_value_heads", None) or heads,
        mask_token_id=mask_token_id,
        aux_layer_ids=wanted.aux_layer_ids,
        num_depths=wanted.num_depths,
        draft_vocab_size=wanted.draft_vocab_size or vocab_size,
        head_dim=getattr(text, "head_dim", None) or width // text.num_attention_heads,
        rms_norm_eps=getattr(text, "rms_norm_eps", 1e-5),
        max_position_embeddings=getattr(text, "max_position_embeddings", None) or context_length(text) or 4096,
        rope_parameters=_rope_parameters(text),
        norm_before_residual=wanted.norm_before_residual,
        norm_before_fc=wanted.norm_before_fc,
        fc_norm=wanted.fc_norm,
        qk_norm=wanted.qk_norm,
        target=target,
        hidden_state_design=wanted.hidden_state_design,
        correction_rank=wanted.correction_rank,
    )
    return shape.replace(aux_layer_ids=shape.aux_layer_ids_for(text.num_hidden_layers))


def new_drafter(
    config: RunConfig,
    target: Ends,
    mask_token_id: int | None,
    documents: Sequence[Document],
    essential: Essential = NOTHING_ESSENTIAL,
) -> PEagleDrafter:
    """Make a drafter in float32 on the target's device.

    documents: the training data, counted when draft_vocab_size is smaller than V; essential: always drafted then.
    """
    table, head = embedding(target), target_head(target)
    shape = drafter_config(config.drafter, config.target, target.config, mask_token_id, table.shape[0])
    check_widths(table, head, shape)
    # The same weights whatever else draws random numbers in this process.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(config.seed)
        drafter = PEagleDrafter(shape)
    vocab = draft_vocabulary(documents, shape.vocab_size, shape.draft_vocab_size, essential)
    with torch.no_grad():
        drafter.embed_tokens.weight.copy_(table)
        drafter.lm_head.weight.copy_(head[vocab.to(head.device)])
        drafter.d2t = offsets(vocab)
    freeze(drafter, config.drafter)
    return drafter.to(head.device)


def freeze(drafter: PEagleDrafter, wanted: DrafterConfig) -> None:
    """Take from training what the configuration does not train of embedding and output head."""
    drafter.embed_tokens.requires_grad_(wanted.train_embedding)
    drafter.lm_head.requires_grad_(wanted.train_lm_head)


def draft_vocabulary(
    documents: Sequence[Document], vocab_size: int, draft_vocab_size: int, essential: Essential = NOTHING_ESSENTIAL
) -> Tensor:
    """Return the ids that can be drafted, int64[V_d], ascending.

    They are the essential ones and those that the target generated most often. Prepared data was counted as a whole.
    """
    if draft_vocab_size == vocab_size:
        return torch.arange(vocab_size)
    if isinstance(documents, PreparedDocuments):
        return most_frequent(documents.generated_counts, draft_vocab_size, essential)
    return most_frequent(count_generated(documents, vocab_size), draft_vocab_size, essential)


def _required(text: Any, key: str, instead: str = "") -> int:
    """Return a size of the target's config. instead: the key of ours that may be set in its place."""
    value = getattr(text, key, None)
    if not isinstance(value, int):
        hint = f"; set {instead}" if instead else ""
        raise InputError(f"the config of the target ({text.model_type}) gives no single {key!r}{hint}")
    return value


def _rope_parameters(text: Any) -> dict[str, Any]:
    rope = dict(getattr(text, "rope_parameters", None) or {})
    # Targets with several kinds of attention keep one dictionary for each; the drafter attends to everything.
    rope = dict(rope.get("full_attention", rope))
    rope.setdefault("rope_type", "default")
    rope.setdefault("rope_theta", getattr(text, "rope_theta", None) or 10000.0)
    return {key: rope[key] for key in ROPE_KEYS if rope.get(key) is not None}


def check_widths(table: Tensor, head: Tensor, shape: PEagleConfig) -> None:
    """Raise InputError unless the target's embedding and output head are as wide as its hidden state."""
    if table.shape[1] != shape.hidden_size or head.shape[1] != shape.hidden_size:
        raise InputError(
            f"the target's embedding is {table.shape[1]} wide and its head {head.shape[1]}, "
            f"but its hidden size is {shape.hidden_size}; such targets are not supported"
        )
