"""Make token ids of turns, as the server does of a prompt and the target of its answer.

A prompt is tokenised by itself, with no token added: it is what a server reports for the same request. An answer ends
with the first id that ends a turn; what a template writes behind it (a line break, say) no model generates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.chat.turns import Turn


@dataclass(frozen=True)
class TurnTokens:
    """prompt, answer: token ids; behind: those that the template writes behind the end of the turn."""

    prompt: list[int]
    answer: list[int]
    behind: list[int]


class Tokens:
    """Makes token ids with one tokenizer. end_ids: those that end a turn of its target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Iterable[int]) -> None:
        self.tokenizer = tokenizer
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.end_ids = frozenset((*end_ids, *own))
        bos = tokenizer.bos_token_id
        begins = bos is not None and list(tokenizer("", add_special_tokens=True)["input_ids"])[:1] == [bos]
        self.begin = [bos] if begins else []
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    def plain(self, text: str) -> list[int]:
        """Return the ids of a text, nothing added."""
        check_text(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def begun(self, ids: list[int]) -> list[int]:
        """Return the ids of a text behind the token with which the tokenizer begins texts, which is there once."""
        return ids if ids[:1] == self.begin else self.begin + ids

    def turn(self, turn: Turn) -> TurnTokens:
        """Return the ids of a turn of a chat."""
        prompt = self.plain(turn.prompt)
        answer = self.after(prompt, turn.prompt, turn.answer)
        stop = len(answer) if turn.cut else self._stop(answer)
        return TurnTokens(prompt, answer[:stop], answer[stop:])

    def after(self, prompt: list[int], prompt_text: str, answer: str) -> list[int]:
        """Return the ids of an answer behind the `plain` prompt; none of them joins a piece of both."""
        whole = self.plain(prompt_text + answer)
        return whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.plain(answer)

    def until_end(self, ids: list[int]) -> list[int]:
        """Return the ids up to the first that ends a turn."""
        return ids[: next((i + 1 for i, token in enumerate(ids) if token in self.end_ids), len(ids))]

    def _stop(self, answer: list[int]) -> int:
        """Return where the turn ends: behind its first end id or, where it has none, its last special token."""
        ended = self.until_end(answer)
        if ended and ended[-1] in self.end_ids:
            return len(ended)
        return max((i + 1 for i, token in enumerate(answer) if token in self.special), default=len(answer))


def check_text(text: str) -> None:
    """Raise InputError on half of a surrogate pair: JSON can name it, no tokenizer takes it and no server is asked."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("has half of a surrogate pair, which is no text") from None
