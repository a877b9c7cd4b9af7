"""A tiny target on disk with its tokenizer, some data, and a small run that uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_target
from tiny_run import make_tokenizer, run_options
from transformers import PreTrainedTokenizerFast

from trainer.config import RunConfig, load_config


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def target_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    directory = tmp_path_factory.mktemp("target")
    target = tiny_target(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=1).float()
    target.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    lines = [
        {"prompt": f"what is {i} + {i}?", "response": f" The answer is {2 * i}. " * (1 + i % 3)} for i in range(40)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def run_config(target_dir: Path, data_file: Path, tmp_path: Path) -> RunConfig:
    """Six steps of a one-layer drafter with three depths; a second or so."""
    return load_config(None, run_options(target_dir, data_file, tmp_path / "run"))
