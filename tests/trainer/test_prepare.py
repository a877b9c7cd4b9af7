"""`prepare`: the same documents as reading the files, whatever the workers, and one sentence for everything wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import make_tokenizer

from peagle_core.errors import InputError
from trainer.__main__ import main
from trainer.config import load_config
from trainer.data import shards
from trainer.data.packing import pack
from trainer.inputs import load_inputs
from trainer.new_drafter import draft_vocabulary
from trainer.prepare.prepare import run_prepare
from trainer.prepare.summary import answer_lengths
from trainer.storage.resumable import locked


@pytest.fixture
def options(target_dir, data_file, tmp_path) -> list[str]:
    """40 records in shards of 7; in this process unless told otherwise."""
    return [
        f"target={target_dir}",
        f"data.train={data_file}",
        f"output_dir={tmp_path / 'run'}",
        "data.max_length=64",
        "data.row_length=96",
        "data.documents_per_shard=7",
        "data.workers=1",
        "device=cpu",
    ]


def contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def prepared(options: list[str], *more: str) -> Path:
    return run_prepare(load_config(None, [*options, *more]))


def refusal(capsys, arguments: list[str]) -> tuple[int, str]:
    code = main(arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "Traceback" not in error
    return code, error


def test_training_sees_what_it_sees_without_prepare(options, capsys):
    directory = prepared(options)
    assert len(list(directory.glob("shard-*"))) == 6
    assert "40 records -> 40 documents" in capsys.readouterr().out
    plain, mapped = (load_inputs(load_config(None, [*options, *more])) for more in ([], [f"data.train={directory}"]))
    for name in ("train", "heldout"):
        rows, same = (pack(getattr(inputs, name), 96) for inputs in (plain, mapped))
        assert len(rows) == len(same) > 0
        for a, b in zip(rows, same, strict=True):
            assert torch.equal(a.input_ids, b.input_ids)
            assert torch.equal(a.loss_mask, b.loss_mask)
            assert torch.equal(a.doc_ids, b.doc_ids)
            assert b.input_ids.dtype == torch.int64


def test_the_draft_vocabulary_is_the_one_training_takes(options):
    directory = prepared(options, "drafter.draft_vocab_size=20")
    inputs = load_inputs(load_config(None, [*options, f"data.train={directory}"]))
    table = load_file(directory / "vocabulary.safetensors")
    ids = draft_vocabulary(inputs.train, len(table["t2d"]), 20, inputs.essential)
    assert torch.equal(table["d2t"] + torch.arange(20), ids)
    assert table["t2d"].nonzero().flatten().tolist() == ids.tolist()
    everything = [*inputs.train, *inputs.heldout]
    generated = torch.cat([d.input_ids[d.loss_mask] for d in everything])
    assert torch.equal(table["generated_counts"], torch.bincount(generated, minlength=len(table["t2d"])))
    covered = json.loads((directory / "summary.json").read_text())["coverage"]
    assert covered["20"] == pytest.approx(float(torch.isin(generated, ids).double().mean()))
    assert covered["256"] == 1.0


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one(options, tmp_path):
    config = load_config(None, [*options, "data.workers=2"])
    assert contents(run_prepare(config, tmp_path / "two")) == contents(prepared(options))


def test_answers_end_with_their_document():
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool)
    assert answer_lengths(mask, torch.tensor([0, 5, 10])).tolist() == [2, 1, 2, 1]
    assert answer_lengths(mask[:0], torch.tensor([0])).tolist() == []


def test_an_interrupted_run_goes_on_and_ends_the_same(options, tmp_path, monkeypatch):
    straight = contents(run_prepare(load_config(None, options), tmp_path / "straight"))
    write, written = shards.replace_file, []

    def dies(path, data):
        if len(written) == 5:  # two shards with their notes, and a third without
            path.with_name(f".{path.name}.partial-1").write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, data)

    monkeypatch.setattr("trainer.data.shards.replace_file", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(options)
    assert not (tmp_path / "run" / "data").exists()
    partial = tmp_path / "run" / "data.partial"
    (partial / "shard-00000.safetensors").write_bytes(b"damaged while nobody looked")
    again = []
    monkeypatch.setattr("trainer.data.shards.replace_file", lambda p, data: (again.append(p.name), write(p, data)))
    assert contents(prepared(options)) == straight
    assert [name for name in again if name.endswith("tensors")] == [
        f"shard-{i:05d}.safetensors" for i in (0, 2, 3, 4, 5)
    ]
    assert not partial.exists()


def test_a_full_disk_keeps_finished_shards_and_the_next_run_goes_on(options, tmp_path, monkeypatch, capsys):
    write = shards.replace_file

    def full(path, data):
        if path.name == "shard-00003.safetensors":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr("trainer.data.shards.replace_file", full)
    code, error = refusal(capsys, ["prepare", *options])
    assert code == 1
    assert "data.partial: cannot be written (No space left on device)" in error
    monkeypatch.setattr("trainer.data.shards.replace_file", write)
    assert contents(prepared(options)) == contents(run_prepare(load_config(None, options), tmp_path / "straight"))


def test_prepared_again_is_checked_and_left_alone(options, capsys):
    before = contents(prepared(options))
    capsys.readouterr()
    assert contents(prepared(options)) == before
    assert "prepared already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("data.max_length=32", "data.max_length = 64, this run has 32"),
        ("data.documents_per_shard=8", "data.documents_per_shard = 7, this run has 8"),
        ("drafter.draft_vocab_size=9", "drafter.draft_vocab_size = None, this run has 9"),
    ],
)
def test_other_settings_are_refused_finished_or_not(options, tmp_path, capsys, monkeypatch, change, says):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trainer.prepare.prepare.summarise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(options)
    assert (tmp_path / "run" / "data.partial" / "shard-00005.safetensors").is_file()
    for _ in range(2):
        code, error = refusal(capsys, ["prepare", *options, change])
        assert code == 2
        assert says in error
        prepared(options)


def test_changed_data_and_changed_tokenizers_are_refused(options, target_dir, tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    data.write_text('{"text": "hello there, what is the answer?"}\n' * 2)
    options = [*options, f"data.train={data}"]
    directory = prepared(options)
    data.write_text('{"text": "hello there, what is the question?"}\n' * 2)
    code, error = refusal(capsys, ["prepare", *options])
    assert code == 2
    assert "was made with sources = ['own.jsonl (" in error
    other = tmp_path / "target"
    shutil.copytree(target_dir, other)
    make_tokenizer(chat_template="{{ messages }}").save_pretrained(other)
    code, error = refusal(capsys, ["train", *options, f"target={other}", f"data.train={directory}"])
    assert code == 2
    assert "was made with chat template" in error


def test_a_prepared_directory_stands_alone_and_is_prepared_once(options, data_file, capsys):
    directory = prepared(options)
    code, error = refusal(capsys, ["train", *options, f"data.train=[{directory},{data_file}]"])
    assert (code, "must be the only entry" in error) == (2, True)
    code, error = refusal(capsys, ["prepare", *options, f"data.train={directory}"])
    assert (code, "is prepared already" in error) == (2, True)
    directory.rename(directory.with_name("data.partial"))
    code, error = refusal(capsys, ["train", *options, f"data.train={directory}.partial"])
    assert (code, "is not finished" in error) == (2, True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("shard-00002.safetensors", cut, "is damaged, its checksum"),
        ("shard-00002.safetensors", flip, "is damaged, its checksum"),
        ("shard-00002.safetensors", Path.unlink, "No such file"),
        ("vocabulary.safetensors", cut, "is damaged, its checksum"),
        ("index.json", lambda path: path.write_text("{}"), "is no index of prepared data"),
        ("index.json", lambda path: path.write_text(path.read_text()[:100]), "is no index of prepared data"),
        (
            "index.json",
            lambda path: path.write_text(path.read_text().replace('"format": 1', '"format": 9')),
            "format 9",
        ),
    ],
)
def test_a_damaged_file_is_named(options, capsys, name, damage, says):
    directory = prepared(options)
    damage(directory / name)
    arguments = ["train", *options, f"data.train={directory}"]
    code, error = refusal(capsys, arguments)
    assert code == 1
    assert f"{directory / name}: " in error
    assert says in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{broken", "own.jsonl:9: not valid JSON"),
        ('{"question": "x"}', "own.jsonl:9: has keys ['question']"),
        (
            '{"conversations": [{"from": "alien", "value": "x"}]}',
            "own.jsonl:9: 'conversations' has the speaker 'alien'",
        ),
        ('{"text": "\\ud800"}', "own.jsonl:9: has half of a surrogate pair"),
        ('{"text": "\udcff"}', "own.jsonl:9: not valid UTF-8"),
        ("[" * 100_000, "own.jsonl:9: not valid JSON (nested too deeply)"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left(options, tmp_path, capsys, line, says):
    data = tmp_path / "own.jsonl"
    data.write_text('{"text": "a good line of text"}\n' * 8 + line + "\n", errors="surrogateescape")
    code, error = refusal(capsys, ["prepare", *options, f"data.train={data}"])
    assert code == 1
    assert says in error
    assert not list((tmp_path / "run").glob("data*"))


@pytest.mark.slow
def test_a_worker_names_a_bad_line_too(options, tmp_path, capsys):
    data = tmp_path / "own.jsonl"
    data.write_text('{"text": "a good line of text"}\n' * 8 + "{broken\n" + '{"text": "more"}\n' * 20)
    code, error = refusal(capsys, ["prepare", *options, f"data.train={data}", "data.workers=2"])
    assert (code, "own.jsonl:9: not valid JSON" in error) == (1, True)
    assert not list((tmp_path / "run").glob("data*"))


def test_empty_data_and_data_without_answers_are_refused(options, tmp_path, capsys):
    for text, says in (
        ("", "is empty"),
        ("\n\n", "nothing is supervised"),
        ('{"text": ""}\n', "nothing is supervised"),
    ):
        data = tmp_path / "own.jsonl"
        data.write_text(text)
        code, error = refusal(capsys, ["prepare", *options, f"data.train={data}"])
        assert (code, says in error) == (1, True)
        assert not list((tmp_path / "run").glob("data*"))


def test_messages_need_a_chat_template(options, target_dir, tmp_path, capsys):
    silent = tmp_path / "target"
    shutil.copytree(target_dir, silent)
    (silent / "chat_template.jinja").unlink()
    data = tmp_path / "own.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    code, error = refusal(capsys, ["prepare", *options, f"target={silent}", f"data.train={data}"])
    assert (code, "own.jsonl:1: the target's tokenizer has no chat template" in error) == (1, True)


def test_two_runs_do_not_write_to_one_place(options, tmp_path):
    with locked(tmp_path / "run" / "data.partial", "prepare"), pytest.raises(InputError, match="another prepare"):
        prepared(options)
    assert prepared(options).is_dir()
