"""Measure what lies between a target's final state and its logits: nothing but the output head, a factor, or more.

Granite and Cohere scale their logits, Gemma 2 caps them. The loss of training is that of head times final state, so it
must be the target's own distribution: a factor is applied to the head, anything else is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from peagle_core.errors import InputError
from peagle_core.target import Ends, target_head

NUM_TOKENS = 8
BEHIND_HEAD = ("logits_scaling", "logit_scale", "lm_head_multiplier")
# Largest deviation of a logit, in parts of the largest logit: rounding of the dtype, and TF32 on GPUs.
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-6}
HALF_TOLERANCE = 3e-2
# Of these, the one nearest to what was measured is taken when it is this near, so that it is the same on every device.
NEAR = 1e-2
# How much the states of a text's first half may change with what follows, in parts of their norm: in half precision the
# router of experts may choose others.
AHEAD, HALF_AHEAD = 1e-2, 0.3


@torch.no_grad()
def measure_logit_factor(model: PreTrainedModel) -> float:
    """Return the factor by which the model's logits exceed head times final state; 1.0 where they are equal.

    Runs the model on a few tokens; of a sharded one every process must call this. Raises InputError where the logits
    are no multiple, and where a token's state depends on the tokens behind it.
    """
    head = target_head(model)
    ids = torch.linspace(0, len(head) - 1, NUM_TOKENS, device=head.device).long()[None]
    output = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    own, final = output.logits[0].float(), output.hidden_states[-1][0].float()
    plain = final @ head.float().T if final.shape[1] == head.shape[1] else torch.zeros_like(own)
    if plain.shape != own.shape or not (plain.isfinite().all() and own.isfinite().all()):
        raise _refused(model)
    factor = float((plain.double() * own).sum() / plain.double().square().sum().clamp(min=1e-30))
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE)
    if factor <= 0 or (own - factor * plain).abs().max() > tolerance * own.abs().max():
        raise _refused(model)
    half = model(input_ids=ids[:, : NUM_TOKENS // 2], output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    change = (half.float() - final[: len(half)]).norm() / half.float().norm()
    if change > (AHEAD if model.dtype in TOLERANCE else HALF_AHEAD):
        raise InputError(f"this target ({model.config.model_type}) reads what follows a token: it is no causal model")
    nearest = min(_stated_factors(model.config.get_text_config()), key=lambda stated: abs(stated / factor - 1))
    return nearest if abs(nearest / factor - 1) < NEAR else float(f"{factor:.3g}")


def check_scaled_behind_head(target: Ends) -> None:
    """Raise InputError where a server's final states may hold the logits' factor already.

    They do not where SGLang, as transformers, applies it behind the output head.
    """
    config = target.config.get_text_config()
    if getattr(target, "logit_factor", 1.0) != 1.0 and not any(getattr(config, key, None) for key in BEHIND_HEAD):
        raise InputError(
            f"this target ({config.model_type}) scales its logits in a way that a server's states may hold already; "
            "use states.engine=transformers"
        )


def _stated_factors(config: Any) -> list[float]:
    """Return the factors that a config may mean: 1, Granite's, Cohere's, Falcon-H1's, MiniCPM's."""
    scaling, base = getattr(config, "logits_scaling", None), getattr(config, "dim_model_base", None)
    factors = [1.0, getattr(config, "logit_scale", None), getattr(config, "lm_head_multiplier", None)]
    factors += [1 / scaling if scaling else None, base / config.hidden_size if base else None]
    return [float(factor) for factor in factors if factor and factor > 0]


def _refused(model: PreTrainedModel) -> InputError:
    return InputError(
        f"the logits of this target ({model.config.model_type}) are not its output head times its final hidden state, "
        "nor a multiple of that, so no drafter can be trained for it"
    )
