"""Extract the target's hidden states of all documents of a run, into a directory that training reads.

Rows are packed as training packs them and go through the target in their order; a shard is written whenever
states.tokens_per_shard are there. A run that was killed goes on behind the last shard with the same rows in the same
order, so with transformers on a CPU it ends with the same bytes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from peagle_core.errors import InputError
from peagle_core.training import Batch
from trainer.config import RunConfig
from trainer.data.packing import PackedRow, PackedRows, pack
from trainer.errors import ConfigError
from trainer.hidden_states.base import StateSource
from trainer.hidden_states.cached import documents_of
from trainer.hidden_states.choose import check_room, open_to_add
from trainer.hidden_states.store import StateStore
from trainer.inputs import load_inputs
from trainer.new_drafter import drafter_config
from trainer.target.chat_date import CHAT_DATE, with_date
from trainer.target.load import embedding
from trainer.warm_start import adopt_head

# Rows whose states wait for the disk, at most.
ROWS_WAITING = 16
# A person, or --yes, has to agree to more bytes than this.
ASK_ABOVE = 10 * 2**30


def run_extract(config: RunConfig, directory: Path | None = None, yes: bool = False) -> Path:
    """Add the states of data.train and data.heldout to `directory` (default: states.directory).

    Raises ConfigError when the directory is of another target or other settings, InputError when the disk is too small
    or nobody agrees to a large size.
    """
    directory = directory or config.states_directory
    config = adopt_head(config)
    config = with_date(config, (directory / CHAT_DATE, config.output / "run.yaml"))
    inputs = load_inputs(config, whole=False)
    vocab_size = len(embedding(inputs.target))
    shape = drafter_config(config.drafter, config.target, inputs.target.config, inputs.mask_token_id, vocab_size)
    aux_layer_ids = shape.aux_layer_ids_for(inputs.num_target_layers)
    store, make = open_to_add(config, inputs, aux_layer_ids, directory)
    every = [pack(documents, config.data.row_length) for documents in (inputs.train, inputs.heldout)]
    todo = [(rows, i) for rows in every for i, row in enumerate(rows) if _is_missing(store, row)]
    try:
        _agree(directory, check_room(store, _documents(todo)), yes)
        maker = make() if todo else None
    except InputError:
        store.remove_if_empty()
        raise
    if maker is not None:
        total, left = sum(len(row) for rows in every for row in rows), sum(len(rows[i]) for rows, i in todo)
        with tqdm(
            total=total, initial=total - left, desc="extract", unit="token", unit_scale=True, dynamic_ncols=True
        ) as bar:
            _fill(store, maker, (rows[i] for rows, i in todo), bar)
    print(f"written: {directory}; train with states.source=cache states.directory={directory}")
    return directory


def _fill(store: StateStore, maker: StateSource, rows: Iterator[PackedRow], bar: tqdm) -> None:
    """Compute here, write in another thread: a shard's disk time is the next rows' computing time."""
    with ThreadPoolExecutor(1) as writer:
        writing: deque[Future[None]] = deque()
        for row, batch in _computed(maker, rows):
            writing.append(writer.submit(store.add, documents_of(row, batch)))
            while len(writing) > ROWS_WAITING or (writing and writing[0].done()):
                writing.popleft().result()
            bar.update(len(row))
        for written in writing:
            written.result()
    store.flush()


def _computed(maker: StateSource, rows: Iterator[PackedRow]) -> Iterator[tuple[PackedRow, Batch]]:
    """Yield the rows, in order, with their states.

    A server is asked for several rows at once; with transformers a second thread would be in the way.
    """
    if maker.rows_at_once == 1:
        for row in rows:
            yield row, maker(row)
        return
    with ThreadPoolExecutor(maker.rows_at_once) as pool:
        asked = deque((row, pool.submit(maker, row)) for row in islice(rows, maker.rows_at_once))
        while asked:
            row, answer = asked.popleft()
            yield row, answer.result()
            asked.extend((row, pool.submit(maker, row)) for row in islice(rows, 1))


def _is_missing(store: StateStore, row: PackedRow) -> bool:
    return any(ids not in store for ids in row.input_ids.split(row.lengths))


def _documents(todo: list[tuple[PackedRows, int]]) -> Iterator[Tensor]:
    for rows, i in todo:
        yield from rows[i].input_ids.split(rows[i].lengths)


def _agree(directory: Path, size: int, yes: bool) -> None:
    if yes or size <= ASK_ABOVE:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{directory}: that much is written only with --yes, or when a person agrees")
    if input("go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InputError(f"{directory}: nothing was extracted")
