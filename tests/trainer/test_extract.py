"""`extract`, and training from what it wrote: the same numbers, whatever was interrupted, added or computed later."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tiny_run import run_options, signal_after_step

from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from trainer import inputs
from trainer.config import RunConfig, load_config
from trainer.data.packing import pack
from trainer.errors import ConfigError
from trainer.hidden_states import choose, extract
from trainer.hidden_states.choose import open_states
from trainer.hidden_states.extract import run_extract
from trainer.hidden_states.from_transformers import TransformersStates
from trainer.inputs import load_inputs
from trainer.train.run import run_eval, run_train

AUX = (2, 4, 5)


@pytest.fixture
def run(target_dir, data_file, tmp_path):
    """The configuration of a tiny run whose states fill several shards."""

    def make(*changes: str, name: str = "run") -> RunConfig:
        options = run_options(target_dir, data_file, tmp_path / name)
        return load_config(None, [*options, "states.tokens_per_shard=200", *changes])

    return make


@pytest.fixture
def states(run, tmp_path) -> Path:
    """What `extract` writes of the tiny run, in float32."""
    return run_extract(run("states.dtype=float32"), tmp_path / "states")


def cached(states: Path) -> list[str]:
    return ["states.source=cache", f"states.directory={states}"]


def forbid_layers(monkeypatch) -> None:
    """From here on, loading the whole target is an error."""

    def loaded(_):
        raise AssertionError("the whole target was loaded")

    monkeypatch.setattr(inputs, "load_target", loaded)
    monkeypatch.setattr(choose, "load_target", loaded)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def assert_same_head(a: RunConfig, b: RunConfig) -> None:
    ours, others = (dict(load_drafter(config.output / "head").named_parameters()) for config in (a, b))
    for name, weight in ours.items():
        assert torch.equal(weight, others[name]), name


def test_training_from_a_float32_cache_is_training_in_process_bit_for_bit(run, states, monkeypatch, capsys):
    assert len(list(states.glob("*.safetensors"))) > 4
    in_process, from_cache = run(), run(*cached(states), name="cached")
    run_train(in_process)
    forbid_layers(monkeypatch)
    run_train(from_cache)
    assert "the drafter loop is left out" in capsys.readouterr().out
    assert_same_head(in_process, from_cache)
    one, other = (json.loads((config.output / "metrics.json").read_text()) for config in (in_process, from_cache))
    assert one["acceptance"] and not other["acceptance"]
    for key in ("loss", "accuracy_per_depth", "expected_accept_length"):
        assert one[key] == other[key]
    assert run_eval(from_cache).loss == one["loss"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_states_are_the_targets_rounded_to_the_stores_dtype(run, tmp_path, dtype):
    config = run(f"states.dtype={dtype}", f"states.directory={tmp_path / 'states'}")
    run_extract(config)
    inputs = load_inputs(config)
    ends = load_inputs(run(*cached(tmp_path / "states")), whole=False)
    ours = open_states(run(*cached(tmp_path / "states")), ends, AUX, {"data.train": ends.train})
    direct = TransformersStates(inputs.target, AUX)
    assert torch.equal(ours.head, direct.head)
    for row in pack(inputs.train, config.data.row_length):
        found, expected = ours(row), direct(row)
        for name in ("aux", "final_hidden"):
            wanted = getattr(expected, name).to(getattr(torch, dtype)).float()
            assert torch.equal(getattr(found, name), wanted), name
        assert torch.equal(found.input_ids, row.input_ids) and torch.equal(found.loss_mask, row.loss_mask)


def test_rows_packed_otherwise_find_the_same_documents(run, states):
    """Nothing is missing; the numbers are those of other batches, which differ in the last bits."""
    config = run(*cached(states), "data.row_length=64")
    ends = load_inputs(config, whole=False)
    ours = open_states(config, ends, AUX, {"data.train": ends.train})
    direct = TransformersStates(load_inputs(config).target, AUX)
    for row in pack(ends.train, 64):
        torch.testing.assert_close(ours(row).aux, direct(row).aux, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(row).final_hidden, direct(row).final_hidden, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_ends_with_the_same_bytes(run, states, tmp_path, monkeypatch):
    compute, calls = TransformersStates.__call__, []

    def interrupted(self, row):
        calls.append(row)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return compute(self, row)

    other, config = tmp_path / "other", run("states.dtype=float32")
    monkeypatch.setattr(TransformersStates, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_extract(config, other)
    assert 1 < len(contents(other)) < len(contents(states))
    (other / ".shard-00003.safetensors.partial-1").write_bytes(b"left by a killed run")
    (other / "shard-00003.safetensors").write_bytes(b"written, and not yet in the index")
    monkeypatch.setattr(TransformersStates, "__call__", compute)
    run_extract(config, other)
    assert contents(other) == contents(states)


def test_more_data_adds_to_what_is_there(run, states, data_file, tmp_path, monkeypatch):
    before = contents(states)
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "hello", "response": " there, what is the answer?"}) + "\n")
    config = run("states.dtype=float32", f"data.train=[{data_file},{more}]")
    run_extract(config, states)
    after = contents(states)
    added = set(after) - set(before)
    assert len(added) == 1
    assert all(after[name] == before[name] for name in before if name != "index.json")
    run_extract(config, states)
    assert contents(states) == after
    forbid_layers(monkeypatch)
    run_train(run(*cached(states), f"data.train=[{data_file},{more}]"))


def test_documents_that_occur_twice_are_stored_once(run, states, data_file, tmp_path):
    config = run("states.dtype=float32", f"data.train=[{data_file},{data_file}]")
    again = run_extract(config, tmp_path / "again")
    sizes = [
        sum(note["tokens"] for note in json.loads((d / "index.json").read_text())["shards"]) for d in (states, again)
    ]
    assert sizes[0] == sizes[1]


def test_missing_states_are_computed_once_and_used_as_stored(run, tmp_path, monkeypatch):
    """A run that fills its cache takes the same steps as one that finds it filled, and the next one needs no target."""
    directory = tmp_path / "states"
    filled = run(*cached(directory), "optim.max_steps=7", name="filled")  # 14 rows: all of them
    run_extract(filled)
    run_train(filled)
    generated = run(*cached(tmp_path / "other"), "states.on_miss=generate", "optim.max_steps=7", name="generated")
    run_train(generated)
    assert_same_head(filled, generated)
    forbid_layers(monkeypatch)
    run_train(run(*cached(tmp_path / "other"), "states.on_miss=generate", "optim.max_steps=7", name="again"))


def test_a_stopped_run_keeps_what_it_computed(run, tmp_path, monkeypatch):
    signal_after_step(monkeypatch, 3)
    config = run(*cached(tmp_path / "states"), "states.on_miss=generate", "states.tokens_per_shard=100000")
    assert run_train(config) == signal.SIGTERM
    assert [path.name for path in (tmp_path / "states").glob("*.safetensors")] == ["shard-00000.safetensors"]


def test_states_that_are_not_to_be_kept_go_when_the_run_is_finished(run, states):
    (states / "notes.txt").write_text("mine")
    config = run(*cached(states), "states.keep=false")
    run_train(config)
    assert [path.name for path in states.iterdir()] == ["notes.txt"]
    directory = config.output / "own"
    run_train(run("states.source=cache", f"states.directory={directory}", "states.on_miss=generate",
                  "states.keep=false", name="next"))  # fmt: skip
    assert not directory.exists()


@pytest.mark.parametrize(("answer", "code"), [("y", None), ("", "nothing was extracted"), ("no", "nothing was")])
def test_a_large_size_is_asked_about(run, tmp_path, monkeypatch, answer, code):
    monkeypatch.setattr(extract, "ASK_ABOVE", 1000)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    if code is None:
        run_extract(run(), tmp_path / "states")
        assert (tmp_path / "states" / "shard-00000.safetensors").is_file()
    else:
        with pytest.raises(InputError, match=code):
            run_extract(run(), tmp_path / "states")
        assert not (tmp_path / "states").exists()


def test_a_large_size_needs_yes_where_nobody_can_be_asked(run, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "ASK_ABOVE", 1000)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="--yes"):
        run_extract(run(), tmp_path / "states")
    assert not (tmp_path / "states").exists()
    run_extract(run(), tmp_path / "states", yes=True)


def test_a_disk_that_is_too_small_is_said_beforehand(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(InputError, match=r"40 documents take 0.2 MiB, 0.0 MiB are free"):
        run_extract(run(), tmp_path / "states", yes=True)
    with pytest.raises(InputError, match="are free"):
        run_train(run(*cached(tmp_path / "states"), "states.on_miss=generate"))
    assert not (tmp_path / "states").exists()
