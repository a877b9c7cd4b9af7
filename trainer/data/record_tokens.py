"""Make tokens of one record, and say for each whether the target generated it.

Forms: {"text"}, {"prompt", "response"} (or "completion"), the chats of trainer.chat.records or, tokenised,
{"input_ids", "loss_mask"}. What has no answer becomes a prompt: tokens of which none was generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.chat.messages import CUT, Conversation
from trainer.chat.records import chat_of, is_chat
from trainer.chat.template import ChatOptions, ChatTemplate
from trainer.chat.tokens import Tokens, TurnTokens
from trainer.chat.turns import Turn, Turns

# (token ids, which of them the target generated)
Tokenised = tuple[list[int], list[bool]]
FORMS = "'text', 'prompt' and 'response', 'messages', 'conversations', or 'input_ids'"


@dataclass(frozen=True)
class RecordDocuments:
    """What a record became. is_text: one running text; reasoning_lost, unprompted: see documents.ReadReport."""

    documents: list[Tokenised]
    is_text: bool = False
    reasoning_lost: int = 0
    unprompted: int = 0


class RecordTokens:
    """Makes tokens of records with one tokenizer; None: of tokenised ones only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, chat: ChatOptions) -> None:
        self.tokenizer, self.chat = tokenizer, chat

    def read(self, record: Any) -> RecordDocuments:
        """Return the documents of a record. Raises InputError for a malformed one."""
        if not isinstance(record, dict):
            raise InputError("a JSON object was expected")
        if "input_ids" in record:
            return RecordDocuments([_pretokenised(record)])
        if self.tokenizer is None:
            raise InputError("the target has no tokenizer, so only {'input_ids', 'loss_mask'} can be read")
        if is_chat(record):
            return self._chat(chat_of(record))
        if "text" in record:
            ids = self.tokens.begun(self.tokens.plain(_text(record, "text")))
            begin = len(self.tokens.begin)
            return RecordDocuments([(ids, [False] * begin + [True] * (len(ids) - begin))], is_text=True)
        if "prompt" in record:
            return RecordDocuments([self._continued(record)])
        raise InputError(f"has keys {sorted(record)}, expected {FORMS}")

    @cached_property
    def tokens(self) -> Tokens:
        assert self.tokenizer is not None
        return Tokens(self.tokenizer, self.chat.end_ids)

    @cached_property
    def turns(self) -> Turns:
        return Turns(ChatTemplate(self.tokenizer, self.chat))

    @cached_property
    def end(self) -> str:
        """What ends an answer: the end id that a chat writes, else the tokenizer's end token."""
        assert self.tokenizer is not None
        if self.tokenizer.chat_template:
            try:
                tail = self.tokens.plain(self.turns.form.tail)
            except InputError:  # a template that renders no plain chat
                tail = []
            said = next((token for token in tail if token in self.tokens.end_ids), None)
            if said is not None:
                return str(self.tokenizer.convert_ids_to_tokens(said))
        return self.tokenizer.eos_token or ""

    def chat_turns(self, chat: Conversation) -> list[tuple[Turn, TurnTokens]]:
        """Return every turn of a chat with its tokens."""
        return [(turn, self.tokens.turn(turn)) for turn in self.turns.of(chat)]

    def _chat(self, chat: Conversation) -> RecordDocuments:
        """Return a chat as one document or, where the template renders earlier turns in another way, one per turn."""
        turns, documents = self.chat_turns(chat), list[Tokenised]()
        for _, turn in turns:
            before, mask = documents.pop() if documents else ([], [])
            if turn.prompt[: len(before)] != before:
                documents.append((before, mask))
                before, mask = [], []
            context = [False] * (len(turn.prompt) - len(before))
            documents.append((turn.prompt + turn.answer, mask + context + [True] * len(turn.answer)))
        if not turns and chat.messages and chat.messages[-1]["role"] != "assistant":
            prompt = self.tokens.plain(self.turns.template.render(chat.messages, chat.tools, generation_prompt=True))
            documents.append((prompt, [False] * len(prompt)))
        return RecordDocuments(
            documents, reasoning_lost=sum(turn.reasoning_lost for turn, _ in turns), unprompted=chat.unprompted
        )

    def _continued(self, record: dict[str, Any]) -> Tokenised:
        text = _text(record, "prompt")
        prompt = self.tokens.plain(text)
        key = next((key for key in ("response", "completion") if key in record), None)
        answer: list[int] = []
        if key is not None:
            # The target ended its answer: the end token is generated, so it is drafted too. One that was cut has none.
            is_cut = record.get("finish_reason") == CUT
            answer = self.tokens.after(prompt, text, _text(record, key) + ("" if is_cut else self.end))
            answer = self.tokens.until_end(answer)
        begun = self.tokens.begun(prompt)
        return begun + answer, [False] * len(begun) + [True] * len(answer)


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record[key], str):
        raise InputError(f"{key!r} must be a string")
    return record[key]


def _pretokenised(record: dict[str, Any]) -> Tokenised:
    ids, mask = record["input_ids"], record.get("loss_mask")
    if not isinstance(ids, list) or any(type(i) is not int for i in ids):
        raise InputError("'input_ids' must be a list of integers")
    if not isinstance(mask, list) or any(m not in (0, 1) for m in mask):
        raise InputError("'loss_mask' must be a list of 0 and 1")
    if len(ids) != len(mask):
        raise InputError(f"'input_ids' has {len(ids)} entries and 'loss_mask' {len(mask)}")
    return ids, [bool(m) for m in mask]
