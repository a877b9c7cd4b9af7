"""config.json: every spelling that exists gives the same PEagleConfig, and nothing contradictory passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from published_configs import AUX, EXPECTED, FLAT, NESTED
from tiny import tiny_config
from variants import configs

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import speculators_config_dict
from peagle_core.errors import InputError


def write(directory: Path, raw: Any) -> Path:
    (directory / "config.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    return directory


def changed(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with keys set, or removed where the value is None."""
    return {key: value for key, value in (raw | changes).items() if value is not None}


def test_vllms_flat_config(tmp_path):
    assert PEagleConfig.from_pretrained(write(tmp_path, FLAT)) == EXPECTED


def test_speculators_nested_config_says_the_same_and_names_target_and_k(tmp_path):
    expected = EXPECTED.replace(num_depths=5, target="org/target")
    assert PEagleConfig.from_pretrained(write(tmp_path, NESTED)) == expected


@pytest.mark.parametrize(
    ("raw", "changes"),
    [
        (changed(FLAT, ptd_token_id=None, mask_token_id=60), {}),
        (changed(FLAT, ptd_token_id=None, pard_token=60), {}),
        (changed(FLAT, ptd_token_id=None, dflash_config={"mask_token_id": 60}), {}),
        (changed(FLAT, pard_token=60, mask_token_id=60), {}),
        (changed(FLAT, eagle_config=None, **{AUX: [1, 3, 6]}), {"aux_layer_ids": (1, 3, 6)}),
        # At the top level it wins over the nested one, as in vLLM.
        (changed(FLAT, **{AUX: [1, 3, 6]}), {"aux_layer_ids": (1, 3, 6)}),
        (changed(FLAT, eagle_config=None), {"aux_layer_ids": None}),
        (changed(FLAT, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}), {}),
        (changed(FLAT, rope_theta=None, rope_parameters={"rope_theta": 5000.0}), {}),
        (
            changed(FLAT, rope_scaling={"type": "linear", "factor": 2.0}),
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}},
        ),
        (changed(FLAT, rope_theta=None), {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        (changed(FLAT, norm_before_fc=True), {"norm_before_fc": True}),
        (changed(FLAT, eagle_config={AUX: [2, 4, 5], "norm_before_fc": True}), {"norm_before_fc": True}),
        (changed(FLAT, eagle_config={AUX: [2, 4, 5], "fc_norm": True}), {"fc_norm": True}),
        (changed(FLAT, norm_before_residual=None), {"norm_before_residual": False}),
        (changed(FLAT, attention_bias=True), {"attention_bias": True}),
        (changed(FLAT, model_type="qwen3"), {"qk_norm": True}),
        (changed(FLAT, qk_norm=True), {"qk_norm": True}),
        (changed(FLAT, draft_vocab_size=None, target_hidden_size=None, head_dim=None),
         {"draft_vocab_size": 61, "target_hidden_size": 24}),
        (changed(FLAT, num_key_value_heads=None), {"num_key_value_heads": 3}),
        (changed(FLAT, num_depths=7), {"num_depths": 7}),
        (changed(FLAT, architectures=["LlamaForCausalLM"]), {}),
    ],
)  # fmt: skip
def test_spellings(tmp_path, raw, changes):
    assert PEagleConfig.from_pretrained(write(tmp_path, raw)) == EXPECTED.replace(**changes)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{ not json", "not valid JSON"),
        ("[1, 2]", "a JSON object was expected"),
        (changed(FLAT, ptd_token_id=None), "no mask token id: none of mask_token_id, pard_token, ptd_token_id"),
        (changed(FLAT, mask_token_id=59), r"given as \[59, 60\]; the keys contradict each other"),
        (changed(FLAT, mask_token_id=[59]), "contradict each other"),
        (changed(FLAT, ptd_token_id=61), r"mask token id 61 is outside the vocabulary \(0..60\)"),
        (changed(FLAT, ptd_token_id=-1), "mask token id -1 is outside"),
        *((changed(FLAT, **{key: None}), f"key '{key}' is missing") for key in
          ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")),
        (changed(NESTED, transformer_layer_config={}), "key 'num_attention_heads' is missing"),
        (changed(NESTED, transformer_layer_config="llama"), "transformer_layer_config. must be an object"),
        (changed(FLAT, eagle_config=[2, 4, 5]), "eagle_config. must be an object"),
        (changed(FLAT, eagle_config={AUX: 5}), "aux layer ids must be 3"),
        (changed(FLAT, eagle_config={AUX: [5, 2, 4]}), "distinct and ascending"),
        (changed(FLAT, hidden_size="24"), "hidden_size must be a positive integer"),
        (changed(FLAT, rope_parameters="llama3"), "rope_parameters. must be an object"),
        (changed(FLAT, hidden_act="relu"), "hidden_act 'relu'"),
        (changed(FLAT, num_depths=0), r"num_depths \(K\)"),
    ],
)  # fmt: skip
def test_refusals_name_the_file_in_one_sentence(tmp_path, raw, message):
    with pytest.raises(InputError, match=message) as error:
        PEagleConfig.from_pretrained(write(tmp_path, raw))
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_without_config_or_no_directory(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: not found"):
        PEagleConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        PEagleConfig.from_pretrained(tmp_path / "absent")


def test_what_we_write_is_what_vllm_and_sglang_read(tmp_path):
    EXPECTED.save_pretrained(tmp_path / "new")
    raw = json.loads((tmp_path / "new" / "config.json").read_text())
    for key, value in changed(FLAT, eagle_config=None).items():
        assert raw[key] == value, key
    assert raw["eagle_config"] == FLAT["eagle_config"]
    assert raw["mask_token_id"] == 60


@given(configs())
def test_every_config_survives_its_file(tmp_path_factory, config):
    directory = tmp_path_factory.mktemp("config")
    config.save_pretrained(directory)
    assert PEagleConfig.from_pretrained(directory) == config


def test_a_config_without_target_or_depths_writes_nulls_that_read_back(tmp_path):
    config = tiny_config(num_depths=None, aux_layer_ids=None)
    config.save_pretrained(tmp_path)
    assert PEagleConfig.from_pretrained(tmp_path) == config


def test_an_eagle3_head_says_its_aux_ids_to_either_engine(tmp_path):
    # vLLM looks at the top first and counts states entering a layer; SGLang's EAGLE3 reads the nested ids, of outputs.
    config = EXPECTED.replace(mask_token_id=None)
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["parallel_drafting"] is False
    assert (raw[AUX], raw["eagle_config"][AUX]) == ([2, 4, 5], [1, 3, 4])
    assert not any("mask" in key or "ptd" in key for key in raw)
    assert PEagleConfig.from_pretrained(tmp_path) == config
    with pytest.raises(InputError, match="flat format only"):
        speculators_config_dict(config)
    with pytest.raises(InputError, match="no mask token id"):
        PEagleConfig.from_pretrained(write(tmp_path, changed(raw, parallel_drafting=None)))
    with pytest.raises(InputError, match="is for mask rows"):
        config.replace(hidden_state_design="projected_ntp")
