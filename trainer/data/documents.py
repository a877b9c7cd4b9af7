"""Turn records into documents: token ids and, for each, whether the target generated it.

Forms of a record: {"text"}, {"prompt", "response"}, {"messages"}, {"conversations"} (ShareGPT) or, tokenised,
{"input_ids", "loss_mask"}. Texts longer than max_length are divided into several documents, answers are cut there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.data.chat import CUT, chat_spans, sharegpt_messages, tokenize_spans
from trainer.data.sources import Part, Record, count_records, read

# Fewer tokens hold no supervised element: the first one is x_{a+1}, x_{a+2} for some a >= 0.
MIN_TOKENS = 3
SECONDS_WITHOUT_A_BAR = 5


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
        """Whether any element can be charged: two generated tokens in a row, after a first token."""
        return len(self) >= MIN_TOKENS and bool((self.loss_mask[1:-1] & self.loss_mask[2:]).any())


@dataclass
class ReadReport:
    """What was left out while reading: documents cut at max_length, and those with nothing to learn from."""

    records: int = 0
    documents: int = 0
    cut: int = 0
    useless: int = 0


def read_documents(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, max_length: int
) -> tuple[list[Document], ReadReport]:
    """Read all useful documents of the sources (see trainer.data.sources), in order.

    tokenizer: the target's, needed for anything but {"input_ids"}; vocab_size: of the target. Raises InputError naming
    the place of a malformed record, an id outside the vocabulary, and when nothing at all is supervised.
    """
    documents, report = [], ReadReport()
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
            documents += useful_documents(record, tokenizer, vocab_size, max_length, report)
    if not documents:
        raise nothing_supervised(sources)
    return documents, report


def useful_documents(
    record: Record, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, max_length: int, report: ReadReport
) -> list[Document]:
    """Return the documents of one record, each of at most max_length tokens; count what is left out in `report`."""
    where, content = record
    documents: list[Document] = []
    report.records += 1
    try:
        found = list(_parse(content, tokenizer))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    report.useless += not found  # a conversation in which nobody asks
    for document, is_text in found:
        _check_ids(where, document.input_ids, vocab_size)
        pieces = [document[i : i + max_length] for i in range(0, len(document), max_length)]
        report.documents += 1
        if len(pieces) > 1 and not is_text:
            report.cut += 1
            pieces = pieces[:1]
        useful = [piece for piece in pieces if piece.is_useful]
        report.useless += not useful
        documents += useful
    return documents


def nothing_supervised(sources: Sequence[str]) -> InputError:
    return InputError(f"{', '.join(sources)}: nothing is supervised, no document has two generated tokens in a row")


def _parse(record: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[Document, bool]]:
    """Yield (document, whether it is one running text) of a record."""
    if not isinstance(record, dict):
        raise InputError("a JSON object was expected")
    if "input_ids" in record:
        yield _pretokenised(record), False
        return
    if tokenizer is None:
        raise InputError("the target has no tokenizer, so only {'input_ids', 'loss_mask'} can be read")
    if "messages" in record or "conversations" in record:
        messages = record["messages"] if "messages" in record else sharegpt_messages(record["conversations"])
        for spans in chat_spans(messages, tokenizer):
            yield Document(*tokenize_spans(spans, tokenizer, special_tokens=False)), False
    elif "text" in record:
        spans = [(_text(record, "text"), True)]
        yield Document(*tokenize_spans(spans, tokenizer, special_tokens=True)), True
    elif "prompt" in record and "response" in record:
        # The target ended its answer: the end token is generated, so it is drafted too. One that was cut has none.
        end = "" if record.get("finish_reason") == CUT else tokenizer.eos_token or ""
        answer = _text(record, "response") + end
        spans = [(_text(record, "prompt"), False), (answer, True)]
        yield Document(*tokenize_spans(spans, tokenizer, special_tokens=True)), False
    else:
        raise InputError(
            f"has keys {sorted(record)}, expected 'text', 'prompt' and 'response', 'messages', 'conversations', "
            "or 'input_ids'"
        )


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise InputError(f"{key!r} must be a string")
    return record[key]


def _pretokenised(record: dict[str, Any]) -> Document:
    ids, mask = record["input_ids"], record.get("loss_mask")
    if not isinstance(ids, list) or any(type(i) is not int for i in ids):
        raise InputError("'input_ids' must be a list of integers")
    if not isinstance(mask, list) or any(m not in (0, 1) for m in mask):
        raise InputError("'loss_mask' must be a list of 0 and 1")
    if len(ids) != len(mask):
        raise InputError(f"'input_ids' has {len(ids)} entries and 'loss_mask' {len(mask)}")
    return Document(torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool))


def _check_ids(where: str, input_ids: Tensor, vocab_size: int) -> None:
    outside = input_ids[(input_ids < 0) | (input_ids >= vocab_size)]
    if len(outside):
        raise InputError(f"{where}: token id {int(outside[0])} is outside the target's vocabulary of {vocab_size}")
