"""Files as people have them: read as they are or refused in one sentence, before any weight is loaded."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from pathlib import Path

import datasets
import pytest
from chat_templates import OURS
from refusal import refused
from tiny_run import run_options

from peagle_core.errors import InputError
from trainer.__main__ import main
from trainer.config import load_config
from trainer.data.documents import ReadOptions, read_documents
from trainer.data.record_tokens import RecordTokens
from trainer.data.sources import Record
from trainer.errors import ConfigError
from trainer.evaluation.evaluate import prompts_of
from trainer.inputs import load_inputs
from trainer.prepare.show import record_pieces

CHATS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
    for i in range(4)
]
SAID = [f"It is {i}.<|end|>" for i in range(4)]
BAD = [
    '{"messages": [',
    json.dumps({"conversations": [{"from": "bing", "value": "Hi."}]}),
    json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHATS[0]["messages"][1]]}),
    "[1]",
]


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    return path


def sources(tmp_path, target_dir, value, key="data.train") -> tuple[str, ...]:
    options = [f"target={target_dir}", f"output_dir={tmp_path / 'run'}", "device=cpu", f"{key}={value}"]
    return load_config(None, options).data.train


def said(names, tokenizer, **options) -> list[str]:
    documents, _ = read_documents(names, tokenizer, len(tokenizer), 64, ReadOptions(**options))
    return [tokenizer.decode(document.input_ids[document.loss_mask]) for document in documents]


def test_bad_records_are_refused_by_default_and_skipped_by_reason(lines, tokenizer):
    """A6: one odd line among good ones."""
    with lines.open("a") as file:
        file.write("\n".join([BAD[0], *BAD]) + "\n")
    with pytest.raises(InputError, match=r"chats.jsonl:5: not valid JSON .*; data.on_bad_record=skip leaves"):
        said([str(lines)], tokenizer)
    documents, report = read_documents([str(lines)], tokenizer, len(tokenizer), 64, ReadOptions(skip_bad=True))
    assert (len(documents), report.records) == (4, 9)
    assert sorted(report.skipped.values()) == [1, 1, 1, 2]
    assert any("the speaker 'bing'" in reason for reason in report.skipped)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": ' + "7" * 5000 + "}", "\x00" * 64, "[1, 2]", '"hello"'])
@pytest.mark.parametrize("first", [True, False])
def test_a_line_of_no_kind_is_skipped(lines, tokenizer, line, first):
    """Too deep, a number of 5,000 digits, what a crash left; also as the first line, where a file may be an array."""
    good = lines.read_text()
    lines.write_text(f"{line}\n{good}" if first else f"{good}{line}\n")
    with pytest.raises(InputError, match=r"chats.jsonl:\d: (not valid JSON|a JSON object was expected)"):
        said([str(lines)], tokenizer)
    assert said([str(lines)], tokenizer, skip_bad=True) == SAID


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_what_was_skipped_is_said(lines, target_dir, tmp_path, capsys, verb):
    with lines.open("a") as file:
        file.write("\n".join(BAD) + "\n")
    options = [*run_options(target_dir, lines, tmp_path / "run"), "data.workers=1", "optim.max_steps=1"]
    refused([verb, *options], 1, "chats.jsonl:5: not valid JSON", capsys)
    assert main([verb, *options, "data.on_bad_record=skip", "eval.num_prompts=0"]) == 0
    assert "1 records skipped: 'conversations' has the speaker 'bing'" in capsys.readouterr().out


def test_a_text_has_one_begin_which_is_not_supervised(tmp_path, tokenizer):
    """A10: a chat that is rendered already."""
    path = tmp_path / "rendered.jsonl"
    path.write_text(json.dumps({"text": "<|begin|><|user|>Q?\n<|assistant|>A.<|end|>\n"}))
    (document,), _ = read_documents([str(path)], tokenizer, len(tokenizer), 64)
    assert tokenizer.decode(document.input_ids) == "<|begin|><|user|>Q?\n<|assistant|>A.<|end|>\n"
    assert document.loss_mask.tolist() == [False] + [True] * (len(document) - 1)
    path.write_text(json.dumps({"prompt": "<|begin|><|user|>Q?\n<|assistant|>", "response": "A."}))
    (document,), _ = read_documents([str(path)], tokenizer, len(tokenizer), 64)
    assert tokenizer.decode(document.input_ids) == "<|begin|><|user|>Q?\n<|assistant|>A.<|end|>"


def test_names_of_files(lines, tokenizer, target_dir, tmp_path, monkeypatch):
    """A13: patterns, several in one value, a home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.jsonl").write_text(lines.read_text())
    (tmp_path / "odd,name.jsonl").write_text(lines.read_text())
    both = (str(tmp_path / "b.jsonl"), str(lines))
    assert sources(tmp_path, target_dir, f"{tmp_path}/[bc]*.jsonl") == both
    assert sources(tmp_path, target_dir, f"{both[0]},{both[1]}") == both
    assert sources(tmp_path, target_dir, "~/b.jsonl, ~/chats.jsonl") == both
    assert sources(tmp_path, target_dir, f"{tmp_path}/odd,name.jsonl") == (f"{tmp_path}/odd,name.jsonl",)
    monkeypatch.chdir(tmp_path)
    assert sources(tmp_path, target_dir, "*s.jsonl") == ("chats.jsonl",)
    with pytest.raises(ConfigError, match=r"no file matches nothing\*.jsonl"):
        sources(tmp_path, target_dir, "nothing*.jsonl")
    options = [f"target={target_dir}", "output_dir=~/run", "states.directory=~/states", "device=cpu"]
    config = load_config(None, [*options, f"data.train={lines}"])
    assert (config.output, config.states_directory) == (tmp_path / "run", tmp_path / "states")


@pytest.mark.parametrize("where", ["{target}", "{target}/.", "{target}/../{name}"])
def test_the_targets_own_directory_is_no_place_for_a_run(lines, target_dir, tmp_path, capsys, where):
    place = where.format(target=target_dir, name=target_dir.name)
    options = [f"target={target_dir}", f"data.train={lines}", "device=cpu", f"output_dir={place}"]
    refused(["train", *options], 2, "is the target's own directory", capsys)


KINDS = [
    "bom", "array", "array, bom", "array called .jsonl", "lines called .json", "carriage returns", "parquet",
    "directory of parquet", "jsonl.gz", "directory of jsonl.gz", "utf-16",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(lines, tokenizer, target_dir, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    called_json = kind in ("array", "array, bom", "lines called .json")
    bom, path = b"\xef\xbb\xbf", tmp_path / ("data.json" if called_json else "data.jsonl")
    if kind == "bom":
        path.write_bytes(bom + lines.read_bytes())
    elif kind.startswith("array"):
        path.write_bytes((bom if "bom" in kind else b"") + json.dumps(CHATS, indent=1).encode())
    elif kind == "carriage returns":
        path.write_bytes(lines.read_bytes().replace(b"\n", b"\r\n"))
    elif kind.endswith(("parquet", "jsonl.gz")):
        ending = kind.removeprefix("directory of ")
        path = tmp_path / "data" / f"train-0.{ending}"
        path.parent.mkdir()
        rows = datasets.Dataset.from_list(CHATS)
        rows.to_parquet(path) if ending == "parquet" else rows.to_json(path, compression="gzip")
        path = path.parent if kind.startswith("directory") else path
    elif kind == "utf-16":
        path.write_bytes(lines.read_text().encode("utf-16"))
        with pytest.raises(InputError, match="is UTF-16; save it as UTF-8"):
            said([str(path)], tokenizer)
        return
    else:
        path.write_bytes(lines.read_bytes())
    assert said(sources(tmp_path, target_dir, path), tokenizer) == SAID


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.jsonl.gz", gzip.compress(b"{}\n" * 500)[:-9], "cut.jsonl.gz: cannot be read (Compressed file ended"),
        ("not.jsonl.gz", b"{}\n", "not.jsonl.gz: cannot be read (Not a gzipped file"),
        ("own.jsonl", b'{"id": ' + b"7" * 5000 + b"}", "own.jsonl:1: not valid JSON (a number is too long)"),
    ],
    ids=["cut", "not gzipped", "long number"],  # a gzip file holds the time, and each worker collects for itself
)
def test_a_broken_file_is_named(tokenizer, target_dir, tmp_path, monkeypatch, name, content, says):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)):
        said(sources(tmp_path, target_dir, tmp_path / name), tokenizer)


def test_a_table_of_prompts_and_responses(tokenizer, target_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with (tmp_path / "t.csv").open("w") as file:
        csv.writer(file).writerows([("prompt", "response"), ("a?", "It is."), ("b?", "It was.")])
    assert said(sources(tmp_path, target_dir, tmp_path / "t.csv"), tokenizer) == ["It is.<|end|>", "It was.<|end|>"]


def test_a_dataset_with_configurations(lines, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "set"
    for name in ("small", "large"):
        (home / name).mkdir(parents=True)
        (home / name / "train.jsonl").write_text(lines.read_text() * (1 + (name == "large")))
    card = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("small", "large"))
    (home / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    assert said([f"hf:{home}:large:train"], tokenizer) == SAID * 2
    assert said([f"hf:{home}:small"], tokenizer) == SAID
    with pytest.raises(InputError, match=r"'small', 'large'.*hf:NAME:CONFIGURATION:SPLIT names one"):
        said([f"hf:{home}"], tokenizer)


def test_trls_prompt_and_completion(tokenizer, tmp_path):
    path = tmp_path / "trl.jsonl"
    path.write_text(json.dumps({"prompt": "a?", "completion": "It is."}) + "\n")
    assert said([str(path)], tokenizer) == ["It is.<|end|>"]


def test_held_out_prompts_need_no_answer(lines, tokenizer, target_dir, tmp_path):
    """A13: questions of benchmarks, as they are."""
    path = tmp_path / "questions.jsonl"
    asked = [
        {"turns": ["Which sea?", "And which land?"]},
        {"prompt": "def f(x):"},
        {"prompt": [{"role": "user", "content": "Why?"}]},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Who?"}]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in asked))
    config = load_config(None, [*run_options(target_dir, lines, tmp_path / "run"), f"data.heldout={path}"])
    inputs = load_inputs(config)
    assert (len(inputs.train), len(inputs.heldout), len(inputs.heldout_prompts)) == (4, 0, 4)
    prompts = [tokenizer.decode(ids) for ids in prompts_of(inputs.to_answer, 8, 4)]
    assert prompts == [
        "<|user|>Which sea?<|assistant|>", "<|begin|>def f(x):", "<|user|>Why?<|assistant|>",
        "<|system|>s<|user|>Who?<|assistant|>",
    ]  # fmt: skip


def test_data_is_read_before_the_weights(lines, target_dir, tmp_path, capsys, monkeypatch):
    bare = tmp_path / "target"  # whose weights cannot be loaded
    bare.mkdir()
    for path in target_dir.iterdir():
        if path.suffix == ".safetensors":
            (bare / path.name).write_bytes(b"no weights")
        else:
            os.link(path, bare / path.name)
    lines.write_text(BAD[0])
    refused(["train", *run_options(bare, lines, tmp_path / "run")], 1, "chats.jsonl:1: not valid JSON", capsys)


def test_records_can_be_looked_at(lines, target_dir, tmp_path, capsys):
    with lines.open("a") as file:
        file.write(BAD[0])
    options = [f"target={target_dir}", f"data.train={lines}", f"output_dir={tmp_path / 'run'}", "device=cpu"]
    assert main(["prepare", *options, "--show", "5"]) == 0
    out = capsys.readouterr().out
    for line in ("prompt | <|user|>0?", "supervised | It is 0.<|end|>", "refused: not valid JSON"):
        assert line in out
    assert not (tmp_path / "run").exists()


def test_what_stands_behind_the_end_is_shown_as_ignored():
    family = OURS["two_ends"]
    tokenizer = family.tokenizer()
    pieces = record_pieces(Record("here", CHATS[1]), RecordTokens(tokenizer, family.options(tokenizer)))
    assert [(kind, tokenizer.decode(ids)) for kind, ids in pieces] == [
        ("prompt", "<|user|>\n1?<|end|>\n<|assistant|>\n"), ("supervised", "It is 1.<|end|>"),
        ("ignored", "\n<|endoftext|>"),
    ]  # fmt: skip
