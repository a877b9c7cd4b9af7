"""A new drafter: what it takes from its target, and which ids may stand for the mask."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_target
from transformers import AutoConfig, LlamaConfig

from peagle_core.errors import InputError
from trainer.data.documents import Document
from trainer.new_drafter import draft_vocabulary, drafter_config, new_drafter


def with_drafter(config, **changes):
    return config.model_copy(update={"drafter": config.drafter.model_copy(update=changes)})


def test_shape_embedding_and_head_come_from_the_target(run_config):
    target = tiny_target(dtype=torch.float32)
    drafter = new_drafter(run_config, target, 7, [])
    shape = drafter.config
    assert (shape.hidden_size, shape.num_hidden_layers, shape.head_dim, shape.num_key_value_heads) == (24, 1, 8, 1)
    assert (shape.mask_token_id, shape.num_depths, shape.aux_layer_ids) == (7, 3, (2, 4, 5))
    assert torch.equal(drafter.embed_tokens.weight, target.get_input_embeddings().weight)
    assert torch.equal(drafter.lm_head.weight, target.get_output_embeddings().weight)
    assert drafter.embed_tokens.weight.data_ptr() != target.get_input_embeddings().weight.data_ptr()
    assert all(p.dtype == torch.float32 for p in drafter.parameters())


def test_frozen_parts_take_no_gradient(run_config):
    config = with_drafter(run_config, train_embedding=False, train_lm_head=False)
    drafter = new_drafter(config, tiny_target(dtype=torch.float32), 7, [])
    frozen = {name for name, p in drafter.named_parameters() if not p.requires_grad}
    assert frozen == {"embed_tokens.weight", "lm_head.weight"}


def test_same_seed_same_weights_and_the_callers_random_state_is_left_alone(run_config):
    target = tiny_target(dtype=torch.float32)
    before = torch.get_rng_state()
    first = new_drafter(run_config, target, 7, [])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second = new_drafter(run_config, target, 7, [])
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = new_drafter(run_config.model_copy(update={"seed": 1}), target, 7, [])
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_draft_vocabulary_is_what_the_target_generated_most(run_config):
    ids = torch.tensor([9, 9, 9, 4, 4, 8, 8, 8, 8])
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
    assert draft_vocabulary([Document(ids, mask)], 10, 2).tolist() == [4, 9]
    target = tiny_target(dtype=torch.float32)
    drafter = new_drafter(with_drafter(run_config, draft_vocab_size=2), target, 7, [Document(ids, mask)])
    assert drafter.target_ids(torch.tensor([0, 1])).tolist() == [4, 9]
    assert torch.equal(drafter.lm_head.weight, target.get_output_embeddings().weight[[4, 9]])


def test_rope_scaling_and_head_dim_come_from_the_target(run_config):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    target = LlamaConfig(hidden_size=24, num_attention_heads=3, num_hidden_layers=8, head_dim=16, rope_parameters=rope)
    shape = drafter_config(run_config.drafter, run_config.target, target, 7, target.vocab_size)
    assert shape.head_dim == 16
    assert {key: shape.rope_parameters[key] for key in rope} == rope


def test_rope_of_full_attention_is_taken_where_a_target_has_several_kinds(run_config):
    target = AutoConfig.for_model("gemma3_text", num_hidden_layers=8)
    shape = drafter_config(run_config.drafter, run_config.target, target, 7, target.vocab_size)
    assert shape.rope_parameters["rope_theta"] == target.rope_parameters["full_attention"]["rope_theta"]
    assert "full_attention" not in shape.rope_parameters


def test_a_target_of_six_layers_is_refused(run_config):
    with pytest.raises(InputError, match="6 layers"):
        new_drafter(run_config, tiny_target(dtype=torch.float32, num_hidden_layers=6), 7, [])


def test_aux_ids_outside_the_target_are_refused(run_config):
    with pytest.raises(InputError, match="aux ids"):
        new_drafter(with_drafter(run_config, aux_layer_ids=(2, 4, 8)), tiny_target(dtype=torch.float32), 7, [])
