"""Make shards of the parts of the data, in worker processes; the shards do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trainer.config.sections import DataConfig
from trainer.data.documents import DocumentReader, ReadOptions
from trainer.data.shards import write_shard
from trainer.data.sources import Part, read
from trainer.target.load import load_tokenizer
from trainer.target.reading import read_options

Job = tuple[Part, Path]
# What a worker process works with, set once when it starts.
_make = None


def make_shards(target: str, data: DataConfig, vocab_size: int, jobs: list[Job]) -> Iterator[int]:
    """Write every shard, yielding its number of records, in order. Raises InputError of the first bad part."""
    workers = min(data.workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        yield from map(_maker(target, data, vocab_size), jobs)
        return
    # A fork of this process would inherit its threads' locks; forks of a process that only imported this module do not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start_worker, (target, data, vocab_size)) as pool:
        yield from pool.map(_work, jobs)


def _maker(target: str, data: DataConfig, vocab_size: int) -> partial[int]:
    tokenizer = load_tokenizer(target)
    return partial(make_shard, tokenizer, read_options(target, data, tokenizer), vocab_size, data.max_length)


def make_shard(
    tokenizer: PreTrainedTokenizerBase | None, options: ReadOptions, vocab_size: int, max_length: int, job: Job
) -> int:
    """Read one part, tokenise it, write its shard. Returns its number of records."""
    part, path = job
    reader = DocumentReader(tokenizer, vocab_size, max_length, options)
    documents = [document for record in read(part) for document in reader.documents(record)]
    write_shard(path, documents, reader.report)
    return part.count or 0


def _start_worker(target: str, data: DataConfig, vocab_size: int) -> None:
    global _make
    # Control-C goes to the parent, which lets the shards under way be finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _make = _maker(target, data, vocab_size)


def _work(job: Job) -> int:
    assert _make is not None
    return _make(job)


def _end_with_parent() -> None:
    """End this worker when its parent is killed, which cannot end it: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
