"""Datasets and ShareGPT conversations become the documents that the same messages in a file become."""

from __future__ import annotations

import json

import datasets
import pytest
import torch

from peagle_core.errors import InputError
from trainer.chat.records import sharegpt_messages
from trainer.config import load_config
from trainer.data.documents import read_documents
from trainer.data.prepared import open_prepared
from trainer.data.sources import Part, read, survey
from trainer.prepare.prepare import run_prepare

TALKS = [
    [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"The answer is {i}."}]
    for i in range(10)
]


@pytest.fixture
def lines(tmp_path) -> str:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    return str(path)


def documents(source, tokenizer):
    return read_documents([str(source)], tokenizer, len(tokenizer), 64)[0]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.loss_mask, b.loss_mask)


def test_sharegpt_is_rendered_as_the_messages_it_means(tokenizer, tmp_path, lines):
    names = {"user": "human", "assistant": "gpt"}
    path = tmp_path / "sharegpt.jsonl"
    turns = [[{"from": names[m["role"]], "value": m["content"]} for m in talk] for talk in TALKS]
    path.write_text("".join(json.dumps({"id": 1, "conversations": talk}) + "\n" for talk in turns))
    assert_same(documents(path, tokenizer), documents(lines, tokenizer))


def test_an_answer_that_nothing_prompted_is_left_out():
    turns = [("system", "s"), ("gpt", "early"), ("human", "q"), ("gpt", "a"), ("tool", "t"), ("gpt", "b")]
    messages = sharegpt_messages([{"from": who, "value": text} for who, text in turns])
    assert [m["content"] for m in messages] == ["s", "q", "a", "t", "b"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert sharegpt_messages([{"from": "gpt", "value": "x"}]) == []
    assert sharegpt_messages(TALKS[0]) is TALKS[0]


@pytest.mark.parametrize("bad", ["hi", ["hi"], [{"value": "x"}], [{"from": "human"}], [{"from": "human", "value": 3}]])
def test_malformed_conversations_are_refused(bad):
    with pytest.raises(InputError, match="'conversations' must be a list"):
        sharegpt_messages(bad)


def test_a_saved_dataset_with_splits(tokenizer, tmp_path, lines):
    table = datasets.Dataset.from_dict({"messages": TALKS, "text": [None] * len(TALKS)})
    datasets.DatasetDict({"train": table, "test": table.select(range(3))}).save_to_disk(tmp_path / "saved")
    expected = documents(lines, tokenizer)
    assert_same(documents(tmp_path / "saved", tokenizer), expected)
    assert_same(documents(f"hf:{tmp_path / 'saved'}:test", tokenizer), expected[:3])
    with pytest.raises(InputError, match="no dataset with a split 'nowhere'"):
        documents(f"hf:{tmp_path / 'saved'}:nowhere", tokenizer)
    datasets.Dataset.from_dict({"messages": ["a", "b"]}).save_to_disk(tmp_path / "talks")
    with pytest.raises(InputError, match="talks, row 0: 'messages' must be a list"):
        documents(tmp_path / "talks", tokenizer)


def test_a_directory_of_parquet_is_prepared_like_the_file(tokenizer, target_dir, tmp_path, lines, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict({"messages": TALKS}).to_parquet(tmp_path / "parquet" / "part.parquet")
    options = [f"target={target_dir}", f"data.train={tmp_path / 'parquet'}", f"output_dir={tmp_path}", "device=cpu"]
    shape = ["data.max_length=64", "data.documents_per_shard=4", "data.workers=1"]
    directory = run_prepare(load_config(None, options + shape))
    assert len(list(directory.glob("shard-*"))) == 3
    assert_same(open_prepared(directory, tokenizer, len(tokenizer), 64), documents(lines, tokenizer))


def test_parts_together_are_the_whole_file(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(
        '{"text": "é"}\r\n\n{"text": "b"}\n   \n{"text": "c"}\n{"text": "no line break at the end"}'.encode()
    )
    whole = list(read(Part(str(path))))
    assert [where.rpartition(":")[2] for where, _ in whole] == ["1", "3", "5", "6"]
    for size in range(1, 8):
        found = survey(str(path), size)
        assert [record for part in found.parts for record in read(part)] == whole
        assert sum(part.count for part in found.parts) == 6
