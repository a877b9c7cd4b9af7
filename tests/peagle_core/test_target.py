"""What is read from a target: what an aux layer id means, the final state, heads that need more than a matrix."""

from __future__ import annotations

import pytest
import torch
from tiny import HIDDEN, VOCAB, tiny_config, tiny_target
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from peagle_core.config import default_aux_layer_ids
from peagle_core.errors import InputError
from peagle_core.target import pick_states, run_target, target_head


def test_id_k_is_the_state_that_enters_layer_k(tiny_target):
    entering: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, i=i: entering.update({i: (args[0] if args else kwargs["hidden_states"]).clone()}),
            with_kwargs=True,
        )
        for i, layer in enumerate(tiny_target.model.layers)
    ]
    ids = torch.randint(0, VOCAB, (2, 7))
    try:
        with torch.no_grad():
            _, aux = run_target(tiny_target, ids, default_aux_layer_ids(8))
    finally:
        for hook in hooks:
            hook.remove()
    assert aux.shape == (2, 7, 3 * HIDDEN)
    for part, layer in zip(aux.chunk(3, dim=-1), (2, 4, 5), strict=True):
        assert torch.equal(part, entering[layer])


def test_the_head_of_the_final_state_is_the_targets_own_distribution(tiny_target):
    ids = torch.randint(0, VOCAB, (1, 9))
    with torch.no_grad():
        output = tiny_target(ids, output_hidden_states=True)
        _, final = pick_states(output.hidden_states, (2, 4, 5))
    torch.testing.assert_close(final @ target_head(tiny_target).T, output.logits)


def test_targets_p_eagle_cannot_distil_are_refused():
    biased = tiny_target()
    biased.set_output_embeddings(nn.Linear(HIDDEN, VOCAB, bias=True))
    with pytest.raises(InputError, match="output head has a bias"):
        target_head(biased)
    capped = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=40, num_hidden_layers=8, num_attention_heads=3,
            num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0,
        )
    )  # fmt: skip
    with pytest.raises(InputError, match="caps its logits"):
        target_head(capped)


def test_every_aux_id_of_a_config_exists_in_the_output(tiny_target):
    ids = tiny_config(aux_layer_ids=(0, 1, 7)).aux_layer_ids_for(8)
    with torch.no_grad():
        output, aux = run_target(tiny_target, torch.tensor([[5]]), ids)
    assert torch.equal(aux[..., :HIDDEN], output.hidden_states[0])
    assert aux.shape == (1, 1, 3 * HIDDEN)
