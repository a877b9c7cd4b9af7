"""What P-EAGLE reads from a target: three aux states per token, the final hidden state, the output head."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peagle_core.errors import InputError

# Keys of configs under which families cap their logits (Gemma 2, RecurrentGemma, xLSTM).
LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class Ends(Protocol):
    """What is read of a target besides its states; a transformers causal LM has it."""

    config: Any

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module: ...


def pick_states(hidden_states: tuple[Tensor, ...], aux_layer_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Pick aux [batch, n, 3H_t] and final [batch, n, H_t] out of transformers' `hidden_states`.

    hidden_states: a tuple of [batch, n, H_t].
    Entry k is the residual stream entering layer k; the last one has had the final norm, so head(final) is the
    distribution of the next token.
    """
    return torch.cat([hidden_states[i] for i in aux_layer_ids], dim=-1), hidden_states[-1]


def run_target(
    target: PreTrainedModel, input_ids: Tensor, aux_layer_ids: tuple[int, ...], **kwargs: Any
) -> tuple[Any, Tensor]:
    """Run a transformers causal LM once. input_ids: int64[batch, n] -> (output, aux [batch,n,3H_t]).

    kwargs go to the model (past_key_values, position_ids, attention_mask, logits_to_keep, ...).
    """
    output = target(input_ids=input_ids, output_hidden_states=True, **kwargs)
    aux, _ = pick_states(output.hidden_states, aux_layer_ids)
    return output, aux


def target_head(target: Ends) -> Tensor:
    """Return the weight of the target's output head, [V, H_t], times its `logit_factor`.

    That factor, where a target has one, was measured when it was loaded for training: head times final state are then
    the target's logits. Raises InputError where they take more than that.
    """
    head = target.get_output_embeddings()
    if head is None:
        raise InputError(f"the target ({target.config.model_type}) has no output head of its own")
    if getattr(head, "bias", None) is not None:
        raise InputError("the target's output head has a bias, which P-EAGLE training does not handle")
    if cap := next((key for key in LOGIT_CAPS if getattr(target.config.get_text_config(), key, None)), None):
        raise InputError(f"the target caps its logits ({cap}), which P-EAGLE training does not handle")
    weight, factor = head.weight, getattr(target, "logit_factor", 1.0)
    assert isinstance(weight, Tensor)
    return weight.detach() if factor == 1.0 else weight.detach() * factor
