"""Prepare data: data.train -> memory-mapped shards of tokens, their counts and a summary, in one directory.

Work goes on in <directory>.partial, a shard at a time; the directory gets its name when all of it is there. Every byte
depends on data and settings alone, so a run that was killed and started again ends with the same files.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from safetensors.torch import save
from tqdm import tqdm

from peagle_core.atomic import finish, partial_of, replace_file
from peagle_core.end_ids import read_end_ids
from peagle_core.errors import InputError
from trainer.config import RunConfig
from trainer.config.sections import DataConfig
from trainer.data.documents import ReadReport, nothing_supervised
from trainer.data.prepared import (
    PREPARED,
    VOCABULARY,
    is_prepared,
    read_checked_index,
    tokenizer_settings,
)
from trainer.data.shards import Shard, finished_shard, note_path
from trainer.data.sources import Part, survey
from trainer.data.vocabulary import Essential, draft_map, essential_ids, usual_sizes
from trainer.errors import ConfigError
from trainer.prepare.summary import Totals, draw_histograms, print_summary, summarise
from trainer.prepare.workers import make_shards
from trainer.storage.index import INDEX, Index, sha256_of, shard_name, write_index
from trainer.storage.resumable import SETTINGS, locked, resume_or_begin
from trainer.storage.settings import refuse_other_settings
from trainer.target.chat_date import date_setting, with_date
from trainer.target.context import within_context
from trainer.target.load import load_config, load_tokenizer
from trainer.target.reading import read_vocab_size


def run_prepare(config: RunConfig, directory: Path | None = None) -> Path:
    """Prepare data.train into `directory` (default: output_dir/data); a killed run is continued where it stopped.

    Raises ConfigError when the directory, finished or not, was made with other settings or from other data, and
    InputError, one sentence, for bad data and a disk that takes no more.
    """
    directory = directory or config.output / "data"
    if is_prepared(config.data.train):
        raise ConfigError(f"data.train: {config.data.train[0]} is prepared already")
    config = within_context(config, load_config(config.target))
    config = with_date(config, (directory / INDEX, partial_of(directory) / SETTINGS))
    tokenizer, vocab_size = load_tokenizer(config.target), read_vocab_size(config.target)
    end_ids = read_end_ids(config.target, tokenizer)
    essential = essential_ids(end_ids, tokenizer)
    if (config.drafter.draft_vocab_size or 0) > vocab_size:
        raise ConfigError(f"drafter.draft_vocab_size exceeds the target's vocabulary of {vocab_size}")
    surveys = [survey(source, config.data.documents_per_shard) for source in config.data.train]
    settings = {
        **tokenizer_settings(tokenizer, vocab_size, config.data.chat_template_kwargs),
        "data.max_length": config.data.max_length,
        "data.documents_per_shard": config.data.documents_per_shard,
        "data.on_bad_record": config.data.on_bad_record,
        **date_setting(config.data.date),
        "end ids": sorted(end_ids),
        "drafter.draft_vocab_size": config.drafter.draft_vocab_size,
        "sources": [f"{Path(s).name} ({found.digest})" for s, found in zip(config.data.train, surveys, strict=True)],
    }
    if directory.exists():
        _check_finished(directory, settings)
        return directory
    parts = [part for found in surveys for part in found.parts]
    partial = partial_of(directory)
    try:
        with locked(partial, "prepare"):
            resume_or_begin(partial, settings)
            try:
                _make(config.target, config.data, vocab_size, partial, parts)
                reduced = config.drafter.draft_vocab_size or vocab_size
                summary = _complete(config.data.train, vocab_size, reduced, essential, partial, settings, len(parts))
            except InputError:
                # The data must change before the next attempt, so nothing made of it will be of use.
                shutil.rmtree(partial)
                raise
            finish(partial, directory)
    except OSError as error:
        raise InputError(f"{partial}: cannot be written ({error.strerror}); prepare again to continue") from None
    except BrokenProcessPool:
        raise InputError(
            f"{partial}: a worker process was killed (out of memory?); prepare again to continue, fewer data.workers "
            "take less memory"
        ) from None
    print_summary(summary)
    print(f"\nwritten: {directory} ({len(parts)} shards); train with data.train={directory}")
    return directory


def _check_finished(directory: Path, settings: dict[str, Any]) -> None:
    if not (directory / INDEX).is_file():
        raise ConfigError(f"{directory}: exists and is no prepared data; choose another --to")
    refuse_other_settings(directory, read_checked_index(directory).settings, settings)
    print(f"{directory}: prepared already, every checksum is right")


def _make(target: str, data: DataConfig, vocab_size: int, partial: Path, parts: list[Part]) -> None:
    """Make every shard that is not there yet."""
    paths = [partial / shard_name(number) for number in range(len(parts))]
    missing = [(part, path) for part, path in zip(parts, paths, strict=True) if finished_shard(path) is None]
    total, left = (sum(part.count or 0 for part in some) for some in (parts, [part for part, _ in missing]))
    with tqdm(total=total, initial=total - left, desc="prepare", unit="record", dynamic_ncols=True) as bar:
        for records in make_shards(target, data, vocab_size, missing):
            bar.update(records)


def _complete(
    sources: tuple[str, ...],
    vocab_size: int,
    draft_vocab_size: int,
    essential: Essential,
    partial: Path,
    settings: dict[str, Any],
    num_shards: int,
) -> dict[str, Any]:
    """Write counts, summary and, last, the index; remove the notes of single shards. Returns the summary."""
    notes, totals, paths = [], Totals(vocab_size), [partial / shard_name(i) for i in range(num_shards)]
    report = ReadReport()
    for path in paths:
        note = finished_shard(path)
        if note is None:
            raise InputError(f"{path}: was changed while prepare was running")
        totals.add(Shard(path))
        report.add(note.pop("read"))
        notes.append(note)
    if not len(totals.document_lengths):
        raise nothing_supervised(sources, report)
    summary = summarise(totals, report, sorted({*usual_sizes(vocab_size), draft_vocab_size}), essential)
    counts = {"token_counts": totals.token_counts, "generated_counts": totals.generated_counts}
    reduced = draft_map(totals.generated_counts, draft_vocab_size, essential) if draft_vocab_size < vocab_size else {}
    replace_file(partial / VOCABULARY, save({**counts, **reduced}))
    replace_file(partial / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    replace_file(partial / "histograms.png", draw_histograms(totals))
    vocabulary = {"file": VOCABULARY, "sha256": sha256_of(partial / VOCABULARY)}
    write_index(partial, PREPARED, Index(settings, notes, {"vocabulary": vocabulary}))
    for path in paths:
        note_path(path).unlink()
    (partial / SETTINGS).unlink()
    return summary
