"""Files -> documents: token ids and, for each, whether the target generated it.

Forms of a JSONL line: {"text"}, {"prompt", "response"}, {"messages"} or, tokenised, {"input_ids", "loss_mask"}.
A .txt file is one text. Texts longer than max_length are divided into several documents, answers are cut there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.data.chat import chat_spans, tokenize_spans

# Fewer tokens hold no supervised element: the first one is x_{a+1}, x_{a+2} for some a >= 0.
MIN_TOKENS = 3


@dataclass(frozen=True)
class Document:
    """input_ids: int64[n]; loss_mask: bool[n], True where the target generated the token."""

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

    documents: int = 0
    cut: int = 0
    useless: int = 0


def read_documents(
    paths: tuple[Path, ...], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, max_length: int
) -> tuple[list[Document], ReadReport]:
    """All useful documents of .jsonl and .txt files, in order.

    tokenizer: the target's, needed for anything but {"input_ids"}; vocab_size: of the target. Raises InputError naming
    file and line for a malformed line, an id outside the vocabulary, and when nothing at all is supervised.
    """
    documents, report = [], ReadReport()
    for path in paths:
        for where, record in _records(path):
            try:
                found = list(_parse(record, tokenizer))
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
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
    if not documents:
        names = ", ".join(map(str, paths))
        raise InputError(f"{names}: nothing is supervised, no document has two generated tokens in a row")
    return documents, report


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, decoded line) of a .jsonl file, or the one text of a .txt file."""
    try:
        if path.suffix == ".txt":
            yield str(path), {"text": path.read_text(encoding="utf-8")}
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    try:
                        yield where, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise InputError(f"{where}: not valid JSON ({error.msg})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not valid UTF-8") from None


def _parse(record: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[tuple[Document, bool]]:
    """(document, is one running text) of a record."""
    if not isinstance(record, dict):
        raise InputError("a JSON object was expected")
    if "input_ids" in record:
        yield _pretokenised(record), False
        return
    if tokenizer is None:
        raise InputError("the target has no tokenizer, so only {'input_ids', 'loss_mask'} can be read")
    if "messages" in record:
        for spans in chat_spans(record["messages"], tokenizer):
            yield Document(*tokenize_spans(spans, tokenizer, special_tokens=False)), False
    elif "text" in record:
        spans = [(_text(record, "text"), True)]
        yield Document(*tokenize_spans(spans, tokenizer, special_tokens=True)), True
    elif "prompt" in record and "response" in record:
        # The target ended its answer: the end token is generated, so it is drafted too.
        answer = _text(record, "response") + (tokenizer.eos_token or "")
        spans = [(_text(record, "prompt"), False), (answer, True)]
        yield Document(*tokenize_spans(spans, tokenizer, special_tokens=True)), False
    else:
        raise InputError(
            f"has keys {sorted(record)}, expected 'text', 'prompt' and 'response', 'messages', or 'input_ids'"
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
