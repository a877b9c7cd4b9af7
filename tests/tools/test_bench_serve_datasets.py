"""Data sets for the serving benchmark: every format that people have, and one sentence for those they do not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from peagle_core.errors import InputError
from tools.bench.serve.datasets import read_dataset

FORMATS = {
    "turns, as MT-Bench": ({"question_id": 81, "category": "writing", "turns": ["one", "two"]}, ("one", "two")),
    "prompt, as HumanEval": ({"task_id": "HumanEval/0", "prompt": "one", "test": "assert"}, ("one",)),
    "question, as GSM8K": ({"question": "one", "answer": "#### 18"}, ("one",)),
    "conversations, as ShareGPT": (
        {"id": "a", "conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "answered"},
                                      {"from": "human", "value": "two"}]}, ("one", "two")),
    "messages": (
        {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"},
                      {"role": "assistant", "content": "answered"}]}, ("one",)),
}  # fmt: skip


def write(path: Path, records: list, how: str = "jsonl") -> Path:
    if how == "array":
        path.write_text(json.dumps(records, indent=1))
    elif how == "gz":
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("how", ["jsonl", "array", "gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(tmp_path, name, how):
    record, turns = FORMATS[name]
    path = write(tmp_path / ("data.jsonl" + (".gz" if how == "gz" else "")), [record, record], how)
    questions = read_dataset(str(path), None, 2)
    assert [question.turns for question in questions] == [turns, turns]
    assert questions[0].dataset == "data"
    assert questions[0].category == record.get("category", "data")
    assert questions[0].system == ("be kind" if name == "messages" else "")


def test_a_parquet_file_is_read_and_the_name_before_the_path_is_taken(tmp_path):
    from datasets import Dataset

    row = {"question_id": "q", "category": "coding", "turns": ["one", "two"], "multiturn": True}
    Dataset.from_list([row]).to_parquet(tmp_path / "test.parquet")
    (question,) = read_dataset(f"speed={tmp_path / 'test.parquet'}", None, 1)
    assert (question.dataset, question.category, question.turns) == ("speed", "coding", ("one",))


def test_tokens_are_asked_as_they_are(tmp_path):
    path = write(tmp_path / "ids.jsonl", [{"input_ids": [1, 2, 3]}])
    assert read_dataset(str(path), None, 2)[0].input_ids == (1, 2, 3)


def test_a_limit_takes_every_category_alike(tmp_path):
    records = [{"category": c, "turns": [f"{c}{i}"]} for c in "ab" for i in range(3)]
    path = write(tmp_path / "q.jsonl", [*records, {"category": "c", "turns": ["c0"]}])
    assert [q.turns[0] for q in read_dataset(str(path), 5, 2)] == ["a0", "b0", "c0", "a1", "b1"]
    assert len(read_dataset(str(path), None, 2)) == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no question in it"),
        ('{"prompt": "a"}\n{"prompt": ', "cannot be read"),
        ('{"text": "a"}', "item 1 has none of the keys"),
        ('{"prompt": "a"}\n{"prompt": ""}', "item 2 asks nothing"),
        ('{"turns": []}', "item 1 asks nothing"),
        ('{"messages": [{"content": "a"}]}', 'without "role"'),
        ("[1]", "item 1 is not an object"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(tmp_path, text, said):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InputError, match=said) as error:
        read_dataset(str(tmp_path / "bad.jsonl"), None, 2)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_dataset(str(tmp_path / "none.jsonl"), None, 2)
