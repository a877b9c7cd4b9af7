"""Show a few records as training would see them: what is the prompt, what is supervised, what is left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain, islice, pairwise

from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.chat.records import chat_of, is_chat
from trainer.config import RunConfig
from trainer.data.record_tokens import RecordTokens
from trainer.data.sources import Part, Record, read
from trainer.target.chat_date import with_date
from trainer.target.load import load_tokenizer
from trainer.target.reading import read_options

PROMPT, SUPERVISED, IGNORED = "prompt", "supervised", "ignored"
# Terminal codes: dim, bold green, red and struck out.
COLOURS = {PROMPT: "2", SUPERVISED: "1;32", IGNORED: "9;31"}
LINE_BREAK = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


def show_records(config: RunConfig, count: int) -> None:
    """Print the first `count` records of data.train, in colours on a terminal; nothing is written.

    A record that is refused says why. Raises InputError for a source that cannot be read.
    """
    config = with_date(config, (config.output / "run.yaml",))
    tokenizer = load_tokenizer(config.target)
    reader = RecordTokens(tokenizer, read_options(config.target, config.data, tokenizer).chat)
    colours = sys.stdout.isatty()
    for record in islice(chain.from_iterable(read(Part(source)) for source in config.data.train), count):
        print(f"{record.where}:")
        try:
            for kind, ids in record_pieces(record, reader):
                _print_piece(kind, _text(ids, tokenizer), colours)
        except InputError as error:
            print(f"  refused: {error}")
    print("nothing was written; without --show, prepare writes all of it")


def record_pieces(record: Record, reader: RecordTokens) -> Iterator[tuple[str, list[int]]]:
    """Yield (kind, token ids) of a record's pieces, in order. Raises InputError where it is refused."""
    if isinstance(record.content, InputError):
        raise record.content
    if isinstance(record.content, dict) and "input_ids" not in record.content and is_chat(record.content):
        turns = reader.chat_turns(chat_of(record.content)) if reader.tokenizer is not None else []
        shown: list[int] = []
        for _, turn in turns:
            known = len(shown) if turn.prompt[: len(shown)] == shown else 0
            yield from ((PROMPT, turn.prompt[known:]), (SUPERVISED, turn.answer), (IGNORED, turn.behind))
            shown = turn.prompt + turn.answer
        if turns:
            return
    for ids, mask in reader.read(record.content).documents:
        edges = [0, *(i for i in range(1, len(ids)) if mask[i] != mask[i - 1]), len(ids)]
        for begin, end in pairwise(edges):
            yield SUPERVISED if mask[begin] else PROMPT, ids[begin:end]


def _text(ids: list[int], tokenizer: PreTrainedTokenizerBase | None) -> str:
    return " ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(ids))


def _print_piece(kind: str, text: str, colours: bool) -> None:
    """Print a piece, each of its lines behind its kind; line breaks are shown, for they may be supervised, too."""
    if not text:
        return
    lines = text.split("\n")
    for number, line in enumerate(lines):
        shown = line + (LINE_BREAK if number < len(lines) - 1 else "")
        if shown:
            print(f"{kind:>12} | " + (f"\033[{COLOURS[kind]}m{shown}\033[0m" if colours else shown))
