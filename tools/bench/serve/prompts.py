"""Turn questions into the tokens that are sent, and answers back into text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peagle_core.errors import InputError
from tools.bench.serve.datasets import Question


@dataclass(frozen=True)
class PromptWriter:
    """Writes prompts with the target's chat template; raw: without it, each question as plain text."""

    tokenizer: PreTrainedTokenizerBase
    raw: bool

    @property
    def templated(self) -> bool:
        return not self.raw and bool(self.tokenizer.chat_template)

    def turns(self, question: Question) -> int:
        """Return how many requests a question makes: without a template there is no way to write a second turn."""
        return len(question.turns) if self.templated and not question.input_ids else 1

    def write(self, question: Question, answers: Sequence[str]) -> list[int]:
        """Return the token ids that ask turn number len(answers), after the server's answers to the earlier ones."""
        if question.input_ids:
            return list(question.input_ids)
        if not self.templated:
            return list(self.tokenizer(question.turns[0])["input_ids"])
        messages = [{"role": "system", "content": question.system}] if question.system else []
        for turn, answer in zip(question.turns, answers, strict=False):
            messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": question.turns[len(answers)]})
        written: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(written["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds; a character that several tokens make comes with the last of them."""
        pieces, shown = [], ""
        for end in range(1, len(ids) + 1):
            text = str(self.tokenizer.decode(list(ids[:end])))
            whole = text if end == len(ids) else text.rstrip("\ufffd")
            pieces.append(whole[len(shown) :])
            shown = whole if len(whole) > len(shown) else shown
        return pieces


def prompt_writer(tokenizer: str, raw: bool) -> PromptWriter:
    """Load the tokenizer in a directory. Raises InputError when it has none."""
    try:
        return PromptWriter(AutoTokenizer.from_pretrained(tokenizer), raw)
    except (OSError, ValueError) as error:
        raise InputError(f"{tokenizer} has no tokenizer that transformers can load: {error}".split("\n")[0]) from error
