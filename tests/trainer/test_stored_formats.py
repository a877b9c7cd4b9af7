"""Directories in format 1 are read: written here byte by byte, as prepare and extract have written them so far."""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import chain
from pathlib import Path

import pytest
import torch

from peagle_core.errors import InputError
from trainer.data.prepared import open_prepared
from trainer.hidden_states.store import read_store

VOCAB, WIDTH = 8, 2
DOCUMENTS = [[5, 6, 7], [1, 2, 3, 4]]
MASKS = [[0, 1, 1], [0, 0, 1, 1]]
MEANING = {"target": "0123456789abcdef", "hidden_size": WIDTH, "aux_layer_ids": [2, 4, 5]}


def flat(lists: list[list]) -> list:
    return [*chain.from_iterable(lists)]


IDS, MASK = flat(DOCUMENTS), flat(MASKS)


def write_tensors(path: Path, **tensors: tuple[str, list[int], bytes]) -> bytes:
    """A safetensors file of (dtype, shape, data): the length of the header in eight bytes, the header, the data."""
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())
    path.write_bytes(content)
    return content


def int32(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def int64(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def float32(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def write_index(directory: Path, **entries) -> None:
    (directory / "index.json").write_text(json.dumps({"format": 1, **entries}, indent=1) + "\n")


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Two documents without a tokenizer, in one shard."""
    shard = write_tensors(
        tmp_path / "shard-00000.safetensors",
        offsets=("I64", [3], int64([0, 3, 7])),
        input_ids=("I32", [7], int32(IDS)),
        loss_mask=("BOOL", [7], bytes(MASK)),
    )
    generated = [sum(i == token and m for i, m in zip(IDS, MASK, strict=True)) for token in range(VOCAB)]
    vocabulary = write_tensors(
        tmp_path / "vocabulary.safetensors",
        generated_counts=("I64", [VOCAB], int64(generated)),
        token_counts=("I64", [VOCAB], int64([IDS.count(token) for token in range(VOCAB)])),
    )
    settings = {
        "vocabulary": VOCAB, "tokenizer": None, "chat template": None, "data.max_length": 64,
        "data.documents_per_shard": 7, "drafter.draft_vocab_size": None, "sources": ["train.jsonl (0123456789abcdef)"],
    }  # fmt: skip
    digest = hashlib.sha256(shard).hexdigest()
    write_index(
        tmp_path,
        settings=settings,
        vocabulary={"file": "vocabulary.safetensors", "sha256": hashlib.sha256(vocabulary).hexdigest()},
        shards=[{"file": "shard-00000.safetensors", "sha256": digest, "documents": 2, "tokens": 7}],
    )
    return tmp_path


def test_prepared_data(prepared):
    found = open_prepared(prepared, None, VOCAB, 64)
    assert [(d.input_ids.tolist(), d.loss_mask.long().tolist()) for d in found] == [*zip(DOCUMENTS, MASKS, strict=True)]
    assert found.lengths == [3, 4]
    assert found.token_counts.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert found.generated_counts.tolist() == [0, 0, 0, 1, 1, 0, 1, 1]


def test_prepared_data_of_another_checksum(prepared):
    (prepared / "vocabulary.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"vocabulary.safetensors: is damaged, .* prepare the data again"):
        open_prepared(prepared, None, VOCAB, 64)


@pytest.fixture
def stored(tmp_path) -> tuple[Path, list[list[float]], list[list[float]]]:
    """(directory, aux, final states) of two documents in float32, in one shard."""
    aux = [[i + 0.5 for i in range(3 * WIDTH * len(ids))] for ids in DOCUMENTS]
    final = [[-i - 0.25 for i in range(WIDTH * len(ids))] for ids in DOCUMENTS]
    keys = [hashlib.sha256(int32(ids)).digest()[:16] for ids in DOCUMENTS]
    checksums = [
        hashlib.sha256(int32(ids) + float32(a) + float32(f)).digest()
        for ids, a, f in zip(DOCUMENTS, aux, final, strict=True)
    ]
    offsets = int64([0, 3, 7])
    shard = write_tensors(
        tmp_path / "shard-00000.safetensors",
        offsets=("I64", [3], offsets),
        aux=("F32", [7, 3 * WIDTH], float32(flat(aux))),
        final_hidden=("F32", [7, WIDTH], float32(flat(final))),
        input_ids=("I32", [7], int32(IDS)),
        checksums=("U8", [2, 32], b"".join(checksums)),
        keys=("U8", [2, 16], b"".join(keys)),
    )
    digest = hashlib.sha256(b"".join(keys) + offsets + b"".join(checksums)).hexdigest()
    write_index(
        tmp_path,
        settings={**MEANING, "dtype": "float32", "made by": "transformers, float32"},
        shards=[
            {"file": "shard-00000.safetensors", "bytes": len(shard), "sha256": digest, "documents": 2, "tokens": 7}
        ],
    )
    return tmp_path, aux, final


def test_stored_states(stored):
    directory, aux, final = stored
    store = read_store(directory, MEANING)
    assert torch.tensor([5, 6]) not in store
    for ids, a, f in zip(DOCUMENTS, aux, final, strict=True):
        found = store.read(torch.tensor(ids))
        assert found.input_ids.tolist() == ids
        assert torch.equal(found.aux, torch.tensor(a).view(-1, 3 * WIDTH))
        assert torch.equal(found.final_hidden, torch.tensor(f).view(-1, WIDTH))
