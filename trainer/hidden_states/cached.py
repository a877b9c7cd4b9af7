"""Read hidden states from a store on disk; what is missing there can be computed and added on the way."""

from __future__ import annotations

from torch import Tensor

from peagle_core.errors import InputError
from peagle_core.training import Batch
from trainer.data.packing import PackedRow
from trainer.hidden_states.base import StateSource, batch_of
from trainer.hidden_states.shards import DocumentStates
from trainer.hidden_states.store import StateStore


class CachedStates(StateSource):
    """Reads a store.

    head: [V, H_t], on the training device; maker: computes the states of rows with missing documents, if any may be
    missing.
    Computed states are used as the store keeps them, rounded to its dtype: the same numbers whether a row was met
    before or not.
    """

    def __init__(self, store: StateStore, head: Tensor, maker: StateSource | None = None) -> None:
        self.store, self.head, self.maker = store, head, maker
        self.target = None if maker is None else maker.target

    def __call__(self, row: PackedRow) -> Batch:
        documents = row.input_ids.split(row.lengths)
        missing = [ids for ids in documents if ids not in self.store]
        if missing and self.maker is None:
            raise missing_states(self.store, missing[0], "a document")
        if missing and self.maker is not None:
            self.store.add(documents_of(row, self.maker(row)))
        states = [self.store.read(ids) for ids in documents]
        blame = f"{self.store.directory}: hidden states are not finite"
        return batch_of(row, [s.aux for s in states], [s.final_hidden for s in states], self.head.device, blame)

    def flush(self) -> None:
        self.store.flush()

    def remove(self) -> None:
        self.store.remove()
        print(f"{self.store.directory}: removed, for states.keep is false")


def documents_of(row: PackedRow, batch: Batch) -> list[DocumentStates]:
    """Divide the states of a row among its documents."""
    parts = (x.split(row.lengths) for x in (row.input_ids, batch.aux, batch.final_hidden))
    return [DocumentStates(*document) for document in zip(*parts, strict=True)]


def missing_states(store: StateStore, input_ids: Tensor, which: str) -> InputError:
    """Return the error for a document without states. which: names the document."""
    start = ", ".join(map(str, input_ids[:4].tolist()))
    return InputError(
        f"{store.directory}: has no states of {which} ({len(input_ids)} tokens, {start}, ...); extract them, "
        "or set states.on_miss=generate"
    )
