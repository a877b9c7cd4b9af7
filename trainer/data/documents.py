"""Turn records into documents: token ids and, for each, whether the target generated it.

Texts longer than max_length are divided into several documents, answers are cut there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.chat.template import ChatOptions
from trainer.data.record_tokens import RecordTokens
from trainer.data.sources import Part, Record, count_records, read

# Fewer tokens hold no supervised element: the first one is x_{a+1}, x_{a+2} for some a >= 0.
MIN_TOKENS = 3
SECONDS_WITHOUT_A_BAR = 5
SKIP_HINT = "data.on_bad_record=skip leaves such records out and counts them"


@dataclass(frozen=True)
class Document:
    """Tokens of one text. input_ids: int64[n]; loss_mask: bool[n], True where the target generated the token."""

    input_ids: Tensor
    loss_mask: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> Document:
        return Document(self.input_ids[part], self.loss_mask[part])

    @property
    def is_useful(self) -> bool:
        """Return whether any element can be charged: two generated tokens in a row, after a first token."""
        return len(self) >= MIN_TOKENS and bool((self.loss_mask[1:-1] & self.loss_mask[2:]).any())

    @property
    def is_prompt(self) -> bool:
        """Whether nothing in it was generated, so that it can be answered."""
        return len(self) > 1 and not bool(self.loss_mask.any())


@dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    skip_bad: leave malformed records out and count them, instead of refusing the data; keep_prompts: keep what has no
    answer, to be answered in an evaluation.
    """

    chat: ChatOptions = field(default_factory=ChatOptions)
    skip_bad: bool = False
    keep_prompts: bool = False


@dataclass
class ReadReport:
    """What was left out while reading.

    cut: documents that reached max_length; useless: those with nothing to learn from; reasoning_lost: answers whose
    reasoning the chat template does not show; unprompted: assistant messages that nothing asked for, which are context
    only; skipped: malformed records, by reason.
    """

    records: int = 0
    documents: int = 0
    cut: int = 0
    useless: int = 0
    reasoning_lost: int = 0
    unprompted: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def add(self, other: dict[str, Any]) -> None:
        """Add the values of another report (`dataclasses.asdict` of it) to this one's."""
        for key, value in other.items():
            if key == "skipped":
                self.skipped = dict(Counter(self.skipped) + Counter(value))
            else:
                setattr(self, key, getattr(self, key) + value)


class DocumentReader:
    """Makes documents of records, each of at most max_length tokens, and counts in `report` what is left out.

    tokenizer: the target's, needed for anything but {"input_ids"}; vocab_size: of the target.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        max_length: int,
        options: ReadOptions | None = None,
    ) -> None:
        self.options = options or ReadOptions()
        self.tokens = RecordTokens(tokenizer, self.options.chat)
        self.vocab_size, self.max_length = vocab_size, max_length
        self.report = ReadReport()

    def documents(self, record: Record) -> list[Document]:
        """Return the useful documents of one record. Raises InputError naming its place, where it is not skipped."""
        self.report.records += 1
        try:
            return self._documents(record)
        except InputError as error:
            if not self.options.skip_bad:
                raise InputError(f"{record.where}: {error}; {SKIP_HINT}") from None
            reason = re.sub(r"(?<!UTF-)\d+", "N", str(error))
            self.report.skipped[reason] = self.report.skipped.get(reason, 0) + 1
            return []

    def _documents(self, record: Record) -> list[Document]:
        if isinstance(record.content, InputError):
            raise record.content
        found, report = self.tokens.read(record.content), self.report
        documents = [Document(torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool))
                     for ids, mask in found.documents]  # fmt: skip
        for document in documents:
            self._check_ids(document.input_ids)
        report.reasoning_lost += found.reasoning_lost
        report.unprompted += found.unprompted
        report.useless += not documents  # a conversation in which nobody asks
        kept: list[Document] = []
        for document in documents:
            pieces = [document[i : i + self.max_length] for i in range(0, len(document), self.max_length)]
            report.documents += 1
            if len(pieces) > 1 and not found.is_text:
                report.cut += 1
                pieces = pieces[:1] if not document.is_prompt else []
            useful = [p for p in pieces if p.is_useful or (self.options.keep_prompts and document.is_prompt)]
            report.useless += not useful
            kept += useful
        return kept

    def _check_ids(self, input_ids: Tensor) -> None:
        outside = input_ids[(input_ids < 0) | (input_ids >= self.vocab_size)]
        if len(outside):
            raise InputError(f"token id {int(outside[0])} is outside the target's vocabulary of {self.vocab_size}")


def read_documents(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    max_length: int,
    options: ReadOptions | None = None,
) -> tuple[list[Document], ReadReport]:
    """Read all useful documents of the sources (see trainer.data.sources), in order.

    Raises InputError naming the place of a malformed record, an id outside the vocabulary, and when nothing at all is
    supervised.
    """
    reader, documents = DocumentReader(tokenizer, vocab_size, max_length, options), []
    for source in sources:
        records = tqdm(
            read(Part(source)),
            desc=f"read {Path(source).name}",
            total=count_records(source),
            unit="record",
            delay=SECONDS_WITHOUT_A_BAR,
            dynamic_ncols=True,
        )
        for record in records:
            documents += reader.documents(record)
    if not documents:
        raise nothing_supervised(sources, reader.report)
    return documents, reader.report


def nothing_supervised(sources: Sequence[str], report: ReadReport) -> InputError:
    """Return the error for data of which nothing is left."""
    reasons = "".join(f"; {line}" for line in left_out(report))
    return InputError(
        f"{', '.join(sources)}: nothing is supervised, no document has two generated tokens in a row{reasons}"
    )


def left_out(report: ReadReport) -> list[str]:
    """Return what a report says beside cut and useless documents, a line each; the most frequent reasons only."""
    lines = [f"{count} records skipped: {reason}" for reason, count in Counter(report.skipped).most_common(5)]
    if len(report.skipped) > 5:
        lines.append(f"{sum(report.skipped.values())} records skipped, for {len(report.skipped)} reasons in all")
    if report.reasoning_lost:
        lines.append(f"{report.reasoning_lost} answers without their reasoning, which the chat template does not show")
    if report.unprompted:
        lines.append(f"{report.unprompted} assistant messages are context only, for nothing asked for them")
    return lines
