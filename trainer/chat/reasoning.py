"""Find by rendering where a chat template shows the reasoning of an answer, and what it writes before an answer."""

from __future__ import annotations

from dataclasses import dataclass

from peagle_core.errors import InputError
from trainer.chat.messages import REASONING_KEYS, Message
from trainer.chat.template import ChatTemplate

# After the reasoning that stands in an answer's text.
THINKING_ENDS = "</think>"
MARK, THOUGHT = "THE-ANSWER", "THE-REASONING"
ASKED: Message = {"role": "user", "content": "Hello"}


@dataclass(frozen=True)
class AnswerForm:
    """How a template shows an answer.

    key: of the message, under which it shows reasoning (None: under no key); in_text: whether it shows reasoning that
    stands in the answer's text, up to `THINKING_ENDS`; empty_block: what it writes before an answer without reasoning
    as if there were an empty one, '' if it does not; header: what the target has to write before such an answer, ''
    for nothing; tail: what the template writes behind it.
    """

    key: str | None
    in_text: bool
    empty_block: str
    header: str
    tail: str


def answer_form(template: ChatTemplate) -> AnswerForm:
    """Render answers to one question to see how the template shows them. Raises InputError when it cannot."""
    plain = _answer(template, content=MARK)
    if MARK not in plain:
        raise InputError("the chat template does not show the text of an answer")
    before, _, tail = plain.partition(MARK)
    with_key = {key: _answer(template, content=MARK, **{key: THOUGHT}) for key in REASONING_KEYS}
    key = next((key for key, text in with_key.items() if THOUGHT in text), None)
    in_text = _answer(template, content=f"<think>\n{THOUGHT}\n{THINKING_ENDS}\n\n{MARK}")
    shows_in_text = THOUGHT in in_text
    prompt = template.render([ASKED], generation_prompt=True)
    added = before.removeprefix(prompt) if before.startswith(prompt) else ""
    shown = with_key[key] if key else in_text if shows_in_text else ""
    if shown and _squeezed(shown.replace(THOUGHT, "", 1).partition(MARK)[0]) == _squeezed(before) and added:
        return AnswerForm(key, shows_in_text, before, "", tail)
    return AnswerForm(key, shows_in_text, "", added, tail)


def is_empty_block(form: AnswerForm, text: str) -> bool:
    """Tell whether `text` is the block of an answer without reasoning, or its end; white space does not count."""
    return bool(form.empty_block) and _squeezed(form.empty_block).endswith(_squeezed(text))


def without_thinking(text: str) -> str:
    """Return what stands in an answer's text behind its reasoning."""
    return text.rpartition(THINKING_ENDS)[2].lstrip("\n")


def _answer(template: ChatTemplate, **message: str) -> str:
    return template.render([ASKED, {"role": "assistant", **message}])


def _squeezed(text: str) -> str:
    return "".join(text.split())
