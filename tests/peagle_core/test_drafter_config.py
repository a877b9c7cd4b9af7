"""PEagleConfig: what it refuses, what it fills in, and which target layers it reads."""

from __future__ import annotations

import dataclasses

import pytest
from tiny import tiny_config

from peagle_core.config import default_aux_layer_ids
from peagle_core.errors import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be a positive integer, found 0"),
        ({"hidden_size": -4, "head_dim": 8}, "hidden_size must be a positive integer"),
        ({"hidden_size": "24"}, "hidden_size must be a positive integer, found '24'"),
        ({"intermediate_size": 2.5}, "intermediate_size must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer"),
        ({"num_attention_heads": "3"}, "num_attention_heads must be a positive integer"),
        ({"num_key_value_heads": 2}, "num_attention_heads 3 is not a multiple of num_key_value_heads 2"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"num_attention_heads": 5, "head_dim": 8}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"head_dim": 7}, "head_dim must be even"),
        ({"draft_vocab_size": 62}, "draft_vocab_size 62 exceeds vocab_size 61"),
        ({"draft_vocab_size": 0}, "draft_vocab_size must be a positive integer"),
        ({"target_hidden_size": 0}, "target_hidden_size must be a positive integer"),
        ({"max_position_embeddings": None}, "max_position_embeddings must be a positive integer"),
        ({"mask_token_id": 61}, r"mask token id 61 is outside the vocabulary \(0..60\)"),
        ({"mask_token_id": -1}, "mask token id -1 is outside"),
        ({"mask_token_id": "60"}, "mask token id '60' is outside"),
        ({"num_depths": 0}, r"num_depths \(K\) must be at least 1, found 0"),
        ({"num_depths": "4"}, r"num_depths \(K\) must be at least 1, found '4'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"norm_before_fc": True, "fc_norm": True}, "exclude each other"),
        ({"aux_layer_ids": (1, 2)}, "aux layer ids must be 3 layer indices"),
        ({"aux_layer_ids": (1, 2, "3")}, "aux layer ids must be 3 layer indices"),
        ({"aux_layer_ids": 5}, "aux layer ids must be 3 layer indices"),
        ({"aux_layer_ids": (-1, 2, 3)}, "aux layer ids must be 3 layer indices"),
        ({"aux_layer_ids": (2, 4, 4)}, "distinct and ascending"),
        ({"aux_layer_ids": (5, 2, 4)}, "distinct and ascending"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a positive number, found '1e-5'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope type 'spiral' is not known"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "Missing required keys in `rope_parameters` .*llama3",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta must be a positive number"),
        ({"rope_parameters": "llama3"}, "rope_parameters must be a dictionary"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(changes, message):
    with pytest.raises(InputError, match=message) as error:
        tiny_config(**changes)
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_filled_in():
    config = tiny_config()
    assert (config.draft_vocab_size, config.target_hidden_size, config.head_dim) == (61, 24, 8)
    assert config.fused_size == 72
    assert tiny_config(target_hidden_size=10).fused_size == 30
    assert tiny_config(head_dim=10, num_attention_heads=6, num_key_value_heads=2).head_dim == 10


def test_a_config_is_frozen_and_replace_validates_again():
    config = tiny_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 8
    assert config.replace(num_depths=6).num_depths == 6
    with pytest.raises(InputError, match="mask token id"):
        config.replace(mask_token_id=100)


@pytest.mark.parametrize(
    ("layers", "ids"), [(8, (2, 4, 5)), (24, (2, 12, 21)), (32, (2, 16, 29)), (36, (2, 18, 33)), (48, (2, 24, 45))]
)
def test_default_aux_layers(layers, ids):
    assert default_aux_layer_ids(layers) == ids
    assert tiny_config(aux_layer_ids=None).aux_layer_ids_for(layers) == ids


def test_targets_the_aux_layers_do_not_fit_are_refused():
    with pytest.raises(InputError, match="the target has 6 layers"):
        default_aux_layer_ids(6)
    with pytest.raises(InputError, match="the target has 6 layers"):
        tiny_config(aux_layer_ids=(1, 2, 3)).aux_layer_ids_for(6)
    with pytest.raises(InputError, match=r"the target has 16 layers; aux ids \[2, 4, 16\] need at least 17"):
        tiny_config(aux_layer_ids=(2, 4, 16)).aux_layer_ids_for(16)
    assert tiny_config(aux_layer_ids=(2, 4, 15)).aux_layer_ids_for(16) == (2, 4, 15)
