"""Tiny random models and batches: a test runs in milliseconds, and argmax still differs from row to row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from peagle_core.config import PEagleConfig
from peagle_core.drafter import PEagleDrafter
from peagle_core.target import pick_states
from peagle_core.training import Batch

VOCAB, HIDDEN, LAYERS = 61, 24, 8


def tiny_config(**changes: Any) -> PEagleConfig:
    """A 2-layer drafter of width 24 for `tiny_target`: 3 query heads, 1 key/value head."""
    options: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "mask_token_id": VOCAB - 1,
        "aux_layer_ids": (2, 4, 5),
        "num_depths": 4,
        "max_position_embeddings": 256,
    }
    return PEagleConfig(**(options | changes))


def tiny_drafter(
    config: PEagleConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 3.0
) -> PEagleDrafter:
    """Random weights, norms and biases included (a norm of ones hides a missing norm); d2t every other token, if any.

    scale multiplies every matrix: large enough that the argmax of the logits differs from row to row.
    """
    torch.manual_seed(seed)
    drafter = PEagleDrafter(config or tiny_config())
    with torch.no_grad():
        for parameter in drafter.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            elif parameter.dim() == 2:
                parameter.mul_(scale)
    if drafter.correction is not None:  # which starts at zero
        torch.nn.init.normal_(drafter.correction.lm_head.weight, std=scale / 2)
    sizes = drafter.config
    if sizes.draft_vocab_size < sizes.vocab_size:
        step = sizes.vocab_size // sizes.draft_vocab_size
        drafter.d2t.copy_((step - 1) * torch.arange(sizes.draft_vocab_size))
    for parameter in drafter.parameters():
        parameter.data = parameter.data.to(dtype)
    return drafter


def tiny_target(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> LlamaForCausalLM:
    """An 8-layer Llama of width 24 with random weights; its greedy text wanders instead of repeating one token."""
    options = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 40,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "sdpa",
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(options | changes))).to(dtype).eval()


def random_batch(
    config: PEagleConfig, loss_mask: Tensor, doc_ids: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Batch, Tensor]:
    """A batch of n = len(doc_ids) random tokens and states, and a random target head [V, H_t]."""
    rng = torch.Generator().manual_seed(seed)
    n = len(doc_ids)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    tokens = torch.randint(0, config.vocab_size, (n,), generator=rng)
    aux, final = normal(n, config.fused_size), normal(n, config.target_hidden_size)
    return Batch(tokens, aux, final, loss_mask, doc_ids), normal(config.vocab_size, config.target_hidden_size)


def text_batch(target: PreTrainedModel, config: PEagleConfig, ids: Tensor, prompt_length: int) -> Batch:
    """What a trainer extracts from an 8-layer target for one document: prompt, then generated tokens."""
    with torch.no_grad():
        states = target(ids[None], output_hidden_states=True).hidden_states
    aux, final = pick_states(states, config.aux_layer_ids_for(LAYERS))
    mask = torch.arange(len(ids)) >= prompt_length
    return Batch(ids, aux[0], final[0], mask, torch.zeros_like(ids))
