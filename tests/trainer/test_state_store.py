"""A store gives back what was added, whoever added it and whenever it was opened."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trainer.hidden_states.shards import DocumentStates
from trainer.hidden_states.store import read_store, store_to_add_to

MEANING = {"target": "t", "hidden_size": 2, "aux_layer_ids": [2, 4, 5]}


def settings(dtype: str) -> dict:
    return {**MEANING, "dtype": dtype, "made by": "hand"}


def document(tokens: list[int], seed: int) -> DocumentStates:
    generator, n = torch.Generator().manual_seed(seed), len(tokens)
    return DocumentStates(
        torch.tensor(tokens), torch.randn(n, 6, generator=generator), torch.randn(n, 2, generator=generator)
    )


documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=12)


@hypothesis_settings(max_examples=20)  # every write is flushed to the disk
@given(documents, st.integers(1, 20), st.sampled_from(["float32", "bfloat16"]))
def test_what_was_added_is_read_before_and_after_it_is_written(tokens, tokens_per_shard, dtype):
    added = {}
    with tempfile.TemporaryDirectory() as directory:
        store = store_to_add_to(Path(directory) / "s", settings(dtype), tokens_per_shard)
        for seed, ids in enumerate(tokens):
            store.add([document(ids, seed)])
            added.setdefault(tuple(ids), document(ids, seed))  # the first stays
        check(store, added, dtype)
        store.flush()
        check(store, added, dtype)
        reopened = read_store(Path(directory) / "s", MEANING)
        check(reopened, added, dtype)
        assert torch.tensor([9, 9]) not in reopened
        stored = sum(path.stat().st_size for path in (Path(directory) / "s").glob("*.safetensors"))
        least = store.size_of(len(added), sum(map(len, added)))
        assert least <= stored <= least + 600 * len(list((Path(directory) / "s").iterdir()))


def check(store, added, dtype) -> None:
    for ids, expected in added.items():
        found = store.read(torch.tensor(ids))
        assert found.input_ids.tolist() == list(ids)
        assert torch.equal(found.aux, expected.aux.to(getattr(torch, dtype)))
        assert torch.equal(found.final_hidden, expected.final_hidden.to(getattr(torch, dtype)))


@pytest.mark.parametrize("same", [True, False])
def test_two_writers_take_turns(tmp_path, same):
    """As two ranks of a run that computes what is missing: neither overwrites the other."""
    one, two = (store_to_add_to(tmp_path / "s", settings("float32"), 100) for _ in range(2))
    one.add([document([1, 2], 0)])
    two.add([document([1, 2] if same else [3], 1), document([4, 5], 2)])
    one.flush()
    two.flush()
    one.add([document([6], 3)])
    one.flush()
    store = read_store(tmp_path / "s", MEANING)
    assert torch.equal(store.read(torch.tensor([1, 2])).aux, document([1, 2], 0).aux)
    assert torch.equal(store.read(torch.tensor([4, 5])).aux, document([4, 5], 2).aux)
    assert torch.equal(store.read(torch.tensor([6])).aux, document([6], 3).aux)
    shards = json.loads((tmp_path / "s" / "index.json").read_text())["shards"]
    assert [note["documents"] for note in shards] == [1, 1 if same else 2, 1]
