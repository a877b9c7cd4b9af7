"""Divide a conversation into turns: what the target is served as a prompt, and what it says to that.

A prompt is the render that ends with the template's generation prompt. An answer is read off the render that has the
message in it: what stands there behind the prompt or, where the template renders a finished answer in another way than
it prompts for one (the prompt opens a block for reasoning that the message does not have), from the message's own text
on. A block for reasoning that the template writes of itself is no part of an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peagle_core.errors import InputError
from trainer.chat.messages import Conversation, Message, text_of
from trainer.chat.reasoning import MARK, THINKING_ENDS, AnswerForm, answer_form, is_empty_block, without_thinking
from trainer.chat.template import ChatTemplate


@dataclass(frozen=True)
class Turn:
    """prompt, answer: texts; the answer has what the template writes behind it, up to the end of the render.

    reasoning_lost: the message has reasoning that the template does not show behind this prompt; cut: the answer
    reached its maximum length, so nothing stands behind its text.
    """

    prompt: str
    answer: str
    reasoning_lost: bool
    cut: bool


class Turns:
    """Divides conversations as one chat template renders them. Raises InputError when it cannot render an answer."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.form: AnswerForm = answer_form(template)

    def of(self, chat: Conversation) -> Iterator[Turn]:
        """Yield a turn for each answer of the conversation, in order. Raises InputError naming the message."""
        for number in chat.answers:
            try:
                yield self._turn(chat, number)
            except InputError as error:
                raise InputError(f"message {number}: {error}") from None

    def _turn(self, chat: Conversation, number: int) -> Turn:
        before, message = chat.messages[:number], chat.messages[number]
        prompt = self.template.render(before, chat.tools, generation_prompt=True)
        reasoning = message.get("reasoning_content", "").strip()
        bare = {key: value for key, value in message.items() if key != "reasoning_content"}
        own = bare | ({self.form.key: message["reasoning_content"]} if reasoning and self.form.key else {})
        full = self.template.render([*before, own], chat.tools)
        thinks_in_text = THINKING_ENDS in text_of(message)
        lost = bool(reasoning) and reasoning not in full[_common(prompt, full) :]
        if _begins(full, prompt, text_of(message).strip() if lost or not reasoning else reasoning):
            begin = len(prompt)
            lost |= thinks_in_text and not self.form.in_text
        else:
            marked = self._marked(chat, before, bare)
            if (reasoning or thinks_in_text) and marked.startswith(prompt) and not full.startswith(prompt):
                # The served prompt leaves no room for reasoning: behind it, the target says the rest.
                own, lost = bare | {"content": without_thinking(text_of(message))}, True
                full = self.template.render([*before, own], chat.tools)
            elif thinks_in_text and not self.form.in_text:
                lost = True
            shown = reasoning if reasoning and not lost else ""
            found = self._begin(full, prompt, marked, shown)
            begin = _common(prompt, full) if found is None else found
            if found is None:
                unasked = self.template.render(before, chat.tools)
                if begin < len(unasked):
                    raise InputError("the chat template renders what stands before it in another way once it is there")
        answer, is_cut = full[begin:], number in chat.cut
        if any(call["function"]["name"] not in answer for call in message.get("tool_calls", ())):
            raise InputError("it calls tools, which the chat template does not show")
        if is_cut:
            answer = answer[: _length_of_text(answer, text_of(own).strip() or reasoning)]
        return Turn(prompt, answer, lost, is_cut)

    def _marked(self, chat: Conversation, before: tuple[Message, ...], bare: Message) -> str:
        """Render the answer with a mark for its text and without reasoning."""
        content = MARK if isinstance(bare["content"], str) else [{"type": "text", "text": MARK}]
        return self.template.render([*before, bare | {"content": content}], chat.tools)

    def _begin(self, full: str, prompt: str, marked: str, reasoning: str) -> int | None:
        """Return where in the full render the target's own words begin; None where neither mark nor reasoning tells.

        marked: see `_marked`; reasoning: what of it is shown.
        """
        behind_prompt = _common(prompt, full)
        place = marked.rfind(MARK)
        if reasoning:
            found = full.rfind(reasoning)
            return behind_prompt if behind_prompt == len(prompt) else found if found >= behind_prompt else None
        if place >= 0 and full[:place] == marked[:place]:
            if behind_prompt < len(prompt):
                return place - (len(self.form.header) if full[:place].endswith(self.form.header) else 0)
            return place if is_empty_block(self.form, full[behind_prompt:place]) else behind_prompt
        return None


def _begins(full: str, prompt: str, said: str) -> bool:
    """Tell whether the full render is the prompt and, behind it, what was said."""
    return bool(said) and full.startswith(prompt) and full[len(prompt) :].lstrip().startswith(said)


def _length_of_text(answer: str, text: str) -> int:
    """Return how many characters of a rendered answer reach to the end of its text; 0 where it is not shown."""
    return answer.rfind(text) + len(text) if text and text in answer else 0


def _common(a: str, b: str) -> int:
    """Return how many characters two texts begin with alike."""
    if b.startswith(a):
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
