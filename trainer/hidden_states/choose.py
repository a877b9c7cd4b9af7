"""Choose the source of a run's hidden states, and what computes states for a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from peagle_core.atomic import replace_file
from peagle_core.errors import InputError
from peagle_core.target import target_head
from trainer.config import RunConfig
from trainer.data.documents import Document
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.cached import CachedStates, missing_states
from trainer.hidden_states.from_sglang import SGLangStates
from trainer.hidden_states.from_transformers import TransformersStates
from trainer.hidden_states.shards import document_key
from trainer.hidden_states.store import StateStore, read_store, store_to_add_to
from trainer.hidden_states.target_digest import target_digest
from trainer.inputs import RunInputs
from trainer.storage.index import INDEX
from trainer.target.chat_date import CHAT_DATE, date_setting
from trainer.target.load import embedding, load_target
from trainer.target.logits import check_scaled_behind_head


def open_states(
    config: RunConfig, inputs: RunInputs, aux_layer_ids: tuple[int, ...], needed: Mapping[str, Sequence[Document]]
) -> StateSource:
    """Open the source that states.source names. needed: all documents that will be asked for, by names for messages.

    Raises InputError, naming the first document, when the cache lacks one that is not to be computed.
    """
    if inputs.model is not None:
        return TransformersStates(inputs.model, aux_layer_ids)
    directory, generate = config.states_directory, config.states.on_miss == "generate"
    head = target_head(inputs.target)
    if not generate or (directory / INDEX).is_file():
        store = read_store(directory, _meaning(config.target, inputs, aux_layer_ids))
        missing = _first_missing(store, needed)
        if missing is None:
            return CachedStates(store, head)
        if not generate:
            raise missing_states(store, *missing)
    store, make = open_to_add(config, inputs, aux_layer_ids, directory)
    try:
        check_room(store, (d.input_ids for documents in needed.values() for d in documents))
        maker = make()
    except InputError:
        store.remove_if_empty()
        raise
    return CachedStates(store, head, maker)


def open_to_add(
    config: RunConfig, inputs: RunInputs, aux_layer_ids: tuple[int, ...], directory: Path
) -> tuple[StateStore, Callable[[], StateSource]]:
    """Open or begin the store in `directory`, and return it with what makes the source of its states.

    The store is for states that this run computes (states.engine).
    """
    make: Callable[[], StateSource]
    if config.states.engine == "sglang":
        check_scaled_behind_head(inputs.target)
        server = SGLangStates(
            config.target,
            config.states.url,
            target_head(inputs.target),
            aux_layer_ids,
            inputs.num_target_layers,
            directory,
        )
        made_by, make = server.made_by, lambda: server
    else:
        made_by = f"transformers, {str(embedding(inputs.target).dtype).removeprefix('torch.')}"
        make = partial(_from_transformers, config, aux_layer_ids)
    settings = {
        **_meaning(config.target, inputs, aux_layer_ids), "dtype": config.states.dtype, "made by": made_by
    }  # fmt: skip
    store = store_to_add_to(directory, settings, config.states.tokens_per_shard)
    if config.data.date is not None and not (directory / CHAT_DATE).is_file():
        replace_file(directory / CHAT_DATE, json.dumps(date_setting(config.data.date)).encode())
    return store, make


def _from_transformers(config: RunConfig, aux_layer_ids: tuple[int, ...]) -> TransformersStates:
    return TransformersStates(load_target(config), aux_layer_ids)


def check_room(store: StateStore, documents: Iterable[Tensor]) -> int:
    """Return and print the bytes that the missing ones of the documents (token ids) take, each counted once.

    Raises InputError when they do not fit.
    """
    missing = {document_key(ids): len(ids) for ids in documents if ids not in store}
    size, free = store.size_of(len(missing), sum(missing.values())), shutil.disk_usage(store.directory).free
    if not missing:
        print(f"{store.directory}: hidden states of all documents are there")
        return 0
    words = f"{store.directory}: hidden states of {len(missing)} documents take {_size(size)}, {_size(free)} are free"
    if size > free:
        raise InputError(words)
    print(words)
    return size


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _meaning(target: str, inputs: RunInputs, aux_layer_ids: tuple[int, ...]) -> dict[str, Any]:
    return {
        "target": target_digest(target),
        "hidden_size": embedding(inputs.target).shape[1],
        "aux_layer_ids": list(aux_layer_ids),
    }


def _first_missing(store: StateStore, needed: Mapping[str, Sequence[Document]]) -> tuple[Tensor, str] | None:
    for name, documents in needed.items():
        for number, document in enumerate(documents):
            if document.input_ids not in store:
                return document.input_ids, f"{name} document {number}"
    return None
