"""Stored hidden states that are damaged, of something else, or not there: one sentence, exit code 2 or 1."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from refusal import refused
from tiny import tiny_target
from tiny_run import run_options

from peagle_core.errors import InputError
from trainer.__main__ import main
from trainer.hidden_states.shards import DocumentStates, document_key
from trainer.hidden_states.store import store_to_add_to

SETTINGS = {"target": "t", "hidden_size": 2, "aux_layer_ids": [2, 4, 5], "dtype": "float32", "made by": "hand"}
SHARD = "shard-00000.safetensors"


@pytest.fixture(scope="module")
def good(target_dir, data_file, tmp_path_factory) -> Path:
    """Extracted states; tests copy them before they break something."""
    directory = tmp_path_factory.mktemp("good") / "states"
    options = run_options(target_dir, data_file, directory.parent / "run")
    assert main(["extract", *options, "states.tokens_per_shard=400", "--to", str(directory)]) == 0
    return directory


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path, tensor: str) -> None:
    """One bit of the last element of a stored tensor."""
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    end = json.loads(data[8:start])[tensor]["data_offsets"][1]
    data[start + end - 1] ^= 1
    path.write_bytes(data)


def change_index(directory: Path, **changes) -> None:
    path = directory / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "index.json: there is none"),
        (lambda d: (d / "index.json").unlink(), "index.json: there is none"),
        (lambda d: cut(d / "index.json"), "index.json: is no index of stored states"),
        (lambda d: change_index(d, format=9), "has format 9, this version reads 1"),
        (lambda d: change_index(d, shards=[{}]), "index.json: is no index of stored states"),
        (lambda d: (d / SHARD).unlink(), f"{SHARD}: cannot be read (No such file"),
        (lambda d: cut(d / SHARD), f"{SHARD}: has "),
        (lambda d: flip(d / SHARD, "keys"), f"{SHARD}: is damaged, the checksum of its list of documents"),
        (lambda d: flip(d / SHARD, "offsets"), "the checksum of its list of documents"),
        (lambda d: flip(d / SHARD, "checksums"), "the checksum of its list of documents"),
        (lambda d: (d / SHARD).write_bytes(bytes((d / SHARD).stat().st_size)), f"{SHARD}: cannot be read"),
        (lambda d: flip(d / SHARD, "aux"), "the checksum of document"),
        (lambda d: flip(d / SHARD, "final_hidden"), "the checksum of document"),
        (lambda d: flip(d / SHARD, "input_ids"), "the checksum of document"),
    ],
)
def test_damaged(good, target_dir, data_file, tmp_path, capsys, damage, says):
    states = shutil.copytree(good, tmp_path / "states")
    damage(states)
    options = [*run_options(target_dir, data_file, tmp_path / "run"), "optim.max_steps=7"]
    refused(["train", *options, "states.source=cache", f"states.directory={states}"], 1, says, capsys)
    assert not (tmp_path / "run" / "head").exists()


@pytest.fixture
def other_target(target_dir, tmp_path):
    """The same tokenizer and sizes, other weights; or, asked for a width, another width."""

    def make(**changes) -> Path:
        directory = shutil.copytree(target_dir, tmp_path / "other-target")
        options = {"vocab_size": 288, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **changes}
        tiny_target(seed=1, **options).float().save_pretrained(directory)
        return directory

    return make


@pytest.mark.parametrize("verb", ["train", "extract"])
@pytest.mark.parametrize(
    ("changes", "override", "says"),
    [
        ({}, "seed=0", "was made with target = "),
        ({"hidden_size": 48}, "seed=0", "was made with hidden_size = 24, this run has 48"),
        (None, "drafter.aux_layer_ids=[1,2,3]", "was made with aux_layer_ids = [2, 4, 5], this run has [1, 2, 3]"),
    ],
)
def test_of_something_else(good, target_dir, other_target, data_file, tmp_path, capsys, verb, changes, override, says):
    target = target_dir if changes is None else other_target(**changes)
    options = [*run_options(target, data_file, tmp_path / "run"), "states.source=cache", f"states.directory={good}"]
    refused([verb, *options, override], 2, says, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("states.dtype=float32", "was made with dtype = bfloat16, this run has float32"),
        ("target_dtype=bfloat16", "was made with made by = transformers, float32"),
        ("states.directory={files}", "holds other files and no index.json"),
    ],
)
def test_extract_never_mixes(good, target_dir, data_file, tmp_path, capsys, override, says):
    before = sorted(path.read_bytes() for path in good.iterdir())
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "thesis.txt").write_text("mine")
    options = run_options(target_dir, data_file, tmp_path / "run")
    override = override.format(files=tmp_path / "files")
    refused(["extract", *options, f"states.directory={good}", override], 2, says, capsys)
    assert sorted(path.read_bytes() for path in good.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ([], 2, "needs states.url, of a server started with `PEAGLE_STATES_DIR=/dev/shm/states python -m sglang"),
        (["states.url=http://127.0.0.1:9"], 1, "http://127.0.0.1:9: no SGLang server answers"),
        (["states.url=localhost:9"], 2, "states.url: 'localhost:9' is not of the form http://HOST:PORT"),
        (["drafter.aux_layer_ids=[1,3,6]"], 2, "--return-aux-hidden-state-layer-ids 0 2 5"),
    ],
)
def test_an_engine_that_is_not_there(target_dir, data_file, tmp_path, capsys, more, code, says):
    options = run_options(target_dir, data_file, tmp_path / "run")
    refused(["extract", *options, "states.engine=sglang", *more], code, says, capsys)
    assert not (tmp_path / "run").exists()


def test_a_document_without_states_is_named(good, target_dir, data_file, tmp_path, capsys):
    more = tmp_path / "more.jsonl"
    more.write_text('{"input_ids": [5, 6, 7, 8], "loss_mask": [0, 1, 1, 1]}\n')
    options = run_options(target_dir, data_file, tmp_path / "run")
    arguments = [*options, "states.source=cache", f"states.directory={good}", f"data.heldout={more}"]
    says = "has no states of held-out document 0 (4 tokens, 5, 6, 7, 8, ...)"
    refused(["train", *arguments], 1, says, capsys)
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_is_one_sentence(good, target_dir, data_file, tmp_path, capsys):
    """A real write error: no file may grow beyond 30 kB. What was written before stays, and is continued."""
    arguments = ["extract", *run_options(target_dir, data_file, tmp_path / "run"), "--to", str(tmp_path / "states")]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        refused([*arguments, "states.tokens_per_shard=400"], 1, "cannot be written", capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["index.json"]
    assert main([*arguments, "states.tokens_per_shard=400"]) == 0
    assert sorted(p.read_bytes() for p in (tmp_path / "states").iterdir()) == sorted(
        p.read_bytes() for p in good.iterdir()
    )


def document(tokens: list[int], value: float = 1.0) -> DocumentStates:
    n = len(tokens)
    return DocumentStates(torch.tensor(tokens), torch.full((n, 6), value), torch.full((n, 2), value))


def test_states_of_other_tokens_are_refused(tmp_path, monkeypatch):
    """A file whose checksums are right and whose keys are not those of its tokens."""
    store = store_to_add_to(tmp_path / "states", SETTINGS, 1)
    wanted = torch.tensor([1, 2, 3])
    monkeypatch.setattr("trainer.hidden_states.shards.document_key", lambda _: document_key(wanted))
    store.add([document([7, 8, 9])])
    with pytest.raises(InputError, match="document 0 has other token ids than the data"):
        store_to_add_to(tmp_path / "states", SETTINGS, 1).read(wanted)


def test_states_that_are_not_finite_are_refused(tmp_path):
    store = store_to_add_to(tmp_path / "states", SETTINGS, 1)
    store.add([document([7, 8, 9], torch.nan)])
    with pytest.raises(InputError, match=rf"{SHARD}: the states of document 0 are not finite"):
        store.read(torch.tensor([7, 8, 9]))
