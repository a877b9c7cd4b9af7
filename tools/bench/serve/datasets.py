"""Read questions from the files that people have: one reader for every published benchmark's own format.

| a line, row or array item with | known from |
| --- | --- |
| `turns` (a list of texts), `category` | MT-Bench, Spec-Bench (`question.jsonl`), SPEED-Bench (`.parquet`, `.jsonl`) |
| `prompt` (and `task_id`) | HumanEval (`.jsonl.gz`), files of one's own |
| `question` (and `answer`) | GSM8K |
| `conversations` of `{"from", "value"}` | ShareGPT (one JSON array) |
| `messages` of `{"role", "content"}` | chats; what the user says is asked, what the assistant said is not used |
| `input_ids` | prompts that are tokens already |
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError

SUFFIXES = (".gz", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Question:
    """One conversation to hold with a server: each of `turns` is asked after the server's answer to the one before.

    system: a system message, or empty; input_ids: the prompt itself, when the file has tokens instead of texts.
    """

    dataset: str
    category: str
    turns: tuple[str, ...]
    system: str = ""
    input_ids: tuple[int, ...] = ()


def read_dataset(argument: str, limit: int | None, max_turns: int) -> list[Question]:
    """Read `PATH` or `NAME=PATH`: at most `limit` questions, of each category the first, then the second, ...

    Raises InputError when the file cannot be read, has no question, or has a line in no known format.
    """
    name, _, after = argument.partition("=")
    path = Path(after or argument)
    dataset = name if after else _name(path)
    try:
        records = list(_records(path))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"the data set {path} cannot be read: {error}") from error
    questions = [_question(record, dataset, max_turns, f"{path}, item {i}") for i, record in enumerate(records, 1)]
    if not questions:
        raise InputError(f"the data set {path} has no question in it")
    return list(islice(_every_category_in_turn(questions), limit))


def _name(path: Path) -> str:
    name = path.name
    while Path(name).suffix in SUFFIXES:
        name = Path(name).stem
    return name


def _records(path: Path) -> Iterable[Any]:
    if path.suffix == ".parquet":
        from datasets import Dataset

        table: Iterable[Any] = Dataset.from_parquet(str(path))
        return table
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        records: list[Any] = json.loads(text)
        return records
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _question(record: Any, dataset: str, max_turns: int, where: str) -> Question:
    """Tell the format of one record by its keys."""
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with keys")
    category = str(record.get("category") or dataset)
    if record.get("input_ids"):
        return Question(dataset, category, (), input_ids=tuple(record["input_ids"]))
    system, turns = "", []
    if "turns" in record:
        turns = list(record["turns"])
    elif "messages" in record or "conversations" in record:
        said = [_message(m, where) for m in record.get("messages") or record["conversations"]]
        system = next((text for role, text in said if role == "system"), "")
        turns = [text for role, text in said if role in ("user", "human")]
    elif "prompt" in record or "question" in record:
        turns = [record["prompt"] if "prompt" in record else record["question"]]
    else:
        raise InputError(
            f"{where} has none of the keys turns, messages, conversations, prompt, question, input_ids; "
            f"it has {', '.join(map(str, record)) or 'none'}"
        )
    if not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise InputError(f"{where} asks nothing: its questions must be texts that are not empty")
    return Question(dataset, category, tuple(turns[:max_turns]), system)


def _message(message: Any, where: str) -> tuple[str, str]:
    """Return (role, text) of a message in OpenAI's or ShareGPT's spelling."""
    if not isinstance(message, dict) or not ({"role", "from"} & set(message)):
        raise InputError(f'{where} has a message without "role" (or "from")')
    return message.get("role") or message["from"], message.get("content") or message.get("value") or ""


def _every_category_in_turn(questions: list[Question]) -> Iterator[Question]:
    """Order the questions so that any beginning holds every category alike."""
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    rounds = chain.from_iterable(zip_longest(*by_category.values()))
    return (question for question in rounds if question is not None)
