"""Open a directory that `prepare` made: check it against its index, and read its documents through memory maps.

A directory is taken whole or not at all.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peagle_core.atomic import PARTIAL_SUFFIX
from peagle_core.errors import InputError
from trainer.data.documents import Document
from trainer.data.shards import Shard
from trainer.errors import ConfigError
from trainer.storage.index import INDEX, Contents, Index, check_files, read_index
from trainer.storage.settings import refuse_other_settings

VOCABULARY = "vocabulary.safetensors"
PREPARED = Contents("prepared data", "prepare the data", others=("vocabulary",))


class PreparedDocuments(Sequence[Document]):
    """Documents of shards, each read when asked for. `select` keeps some; lengths and counts need no reading.

    lengths: tokens of each document. generated_counts, token_counts: int64[V], of the whole directory.
    """

    def __init__(self, shards: list[Shard], numbers: Sequence[int], counts: Mapping[str, Tensor]) -> None:
        self.shards = shards
        self.numbers = numbers
        self.counts = counts
        self._starts = [0, *accumulate(map(len, shards))]
        every = torch.cat([shard.offsets.diff() for shard in shards])
        self.lengths: list[int] = every[torch.tensor(numbers, dtype=torch.int64)].tolist()

    @property
    def generated_counts(self) -> Tensor:
        return self.counts["generated_counts"]

    @property
    def token_counts(self) -> Tensor:
        return self.counts["token_counts"]

    def select(self, places: Sequence[int]) -> PreparedDocuments:
        return PreparedDocuments(self.shards, [self.numbers[i] for i in places], self.counts)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        number = self.numbers[place]
        shard = bisect.bisect_right(self._starts, number) - 1
        return self.shards[shard][number - self._starts[shard]]

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))


def is_prepared(sources: Sequence[str]) -> bool:
    """Tell whether the sources are one prepared directory.

    Raises ConfigError for an unfinished one, or one among others.
    """
    unfinished = [s for s in sources if s.endswith(PARTIAL_SUFFIX) and Path(s).is_dir()]
    if unfinished:
        raise ConfigError(f"{unfinished[0]} is not finished; run prepare again, it continues where it stopped")
    found = [source for source in sources if (Path(source) / INDEX).is_file()]
    if found and len(sources) > 1:
        raise ConfigError(f"{found[0]} is prepared data and must be the only entry; prepare all of it together")
    return bool(found)


def open_prepared(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    max_length: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreparedDocuments:
    """Open all documents, after every checksum was compared.

    Raises InputError naming the file that is absent, cut or changed, and ConfigError when the directory was made with
    another tokenizer, vocabulary, max_length or other variables of the chat template.
    """
    index = read_checked_index(directory)
    now = tokenizer_settings(tokenizer, vocab_size, chat_template_kwargs or {}) | {"data.max_length": max_length}
    refuse_other_settings(directory, {key: index.settings.get(key) for key in now}, now)
    counts = _vocabulary(directory / index.others["vocabulary"]["file"])
    shards = [Shard(directory / entry["file"]) for entry in index.shards]
    return PreparedDocuments(shards, range(sum(map(len, shards))), counts)


def read_checked_index(directory: Path) -> Index:
    """Read the index after every file it lists was found to be as it says, else raise InputError."""
    index = read_index(directory, PREPARED)
    check_files(directory, PREPARED, index)
    return index


def tokenizer_settings(
    tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, chat_template_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what decides the meaning of token ids.

    Of two tokenizers with the same entries, one can read what the other wrote.
    """
    if tokenizer is None:
        return {"vocabulary": vocab_size, "tokenizer": None, "chat template": None}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    ends = json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id])
    return {
        "vocabulary": vocab_size,
        "tokenizer": _digest(words + ends),
        "chat template": _digest(json.dumps(tokenizer.chat_template, sort_keys=True)),
        "data.chat_template_kwargs": dict(chat_template_kwargs) or None,
    }


def _vocabulary(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load(path.read_bytes())
        return {key: tensors[key] for key in ("generated_counts", "token_counts")}
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
