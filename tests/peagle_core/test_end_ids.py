"""The ids that end a turn of a target: those of its generation config, its config and its tokenizer."""

import json
from pathlib import Path

import pytest
from byte_models import save_tokenizer
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

from peagle_core.end_ids import end_ids, read_end_ids
from peagle_core.errors import InputError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A directory with configs and a tokenizer (whose end token is 257), without weights."""
    save_tokenizer(tmp_path)
    LlamaConfig(eos_token_id=5).save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=[1, 52]).save_pretrained(tmp_path)
    return tmp_path


def test_every_file_has_a_say(target):
    assert read_end_ids(str(target), AutoTokenizer.from_pretrained(target)) == {1, 5, 52, 257}
    assert read_end_ids(str(target), None) == {1, 5, 52}
    (target / "generation_config.json").unlink()
    assert read_end_ids(str(target), None) == {5}


def test_none_one_or_a_list():
    assert end_ids(None, LlamaConfig(eos_token_id=None), None) == frozenset()
    assert end_ids(None, LlamaConfig(eos_token_id=0)) == {0}
    assert end_ids(None, LlamaConfig(eos_token_id=[0, 7]), GenerationConfig(eos_token_id=3)) == {0, 3, 7}


def test_a_tool_call_of_llama_3_ends_a_message(target):
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eom_id|>"]})
    assert end_ids(tokenizer) == {257, tokenizer.convert_tokens_to_ids("<|eom_id|>")}


def test_a_broken_file_is_named(target):
    (target / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json: cannot be read"):
        read_end_ids(str(target), None)
    (target / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(InputError, match="has no configuration that can be loaded"):
        read_end_ids(str(target), None)
