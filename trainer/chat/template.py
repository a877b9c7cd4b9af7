"""Render messages with the target's chat template as SGLang's OpenAI endpoint does.

Source: `serving_chat._apply_jinja_template` and `jinja_template_utils` of SGLang 0.5: content stays a list of parts
where the template reads parts, tools are given a second time without their wrapper where the first form fails.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError, one_line
from trainer.chat.messages import Message, join_parts
from trainer.chat.tools import without_wrapper

# Where one of these words stands in a template, the endpoint takes it for one that reads parts.
MEDIA_WORDS = ("image", "audio", "video", "vision")
# Names under which templates loop over messages, as the endpoint looks for them.
LOOP_NAMES = ("message", "msg", "m")


@dataclass(frozen=True)
class ChatOptions:
    """What decides how chats become text, beside the template.

    template_kwargs: more variables of the template; date: the day that `strftime_now` tells, None for today; end_ids:
    the ids that end a turn of the target (its tokenizer's own is always one).
    """

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None
    end_ids: frozenset[int] = frozenset()


class ChatTemplate:
    """The chat template of a target's tokenizer. Raises InputError where the tokenizer has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, options: ChatOptions | None = None) -> None:
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError("the target's tokenizer has no chat template, so 'messages' cannot be rendered")
        self.tokenizer = tokenizer
        self.options = options or ChatOptions()

    def render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None = None, generation_prompt: bool = False
    ) -> str:
        """Return the messages (as `messages.served_message` makes them) as one text.

        Raises InputError where the template refuses them.
        """
        shown = [self._shown(message) for message in messages]
        try:
            return self._apply(shown, tools, generation_prompt)
        except Exception as error:  # templates raise whatever they like, Jinja's own errors included
            first = error
        if tools:
            try:
                return self._apply(shown, without_wrapper(tools), generation_prompt)
            except Exception as error:
                first = error
        raise InputError(f"the chat template refuses the messages ({one_line(first)})")

    @cached_property
    def reads_parts(self) -> bool:
        """Whether the endpoint gives this template content as a list of parts, where a record has it so."""
        source = str(self.tokenizer.chat_template)
        if any(word in source for word in MEDIA_WORDS):
            return True
        try:
            tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation_marks(source))
        except jinja2.TemplateError:
            return False
        return any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))

    def _shown(self, message: Message) -> Message:
        content = message["content"]
        return message if self.reads_parts or isinstance(content, str) else message | {"content": join_parts(content)}

    def _apply(self, messages: list[Message], tools: list[dict[str, Any]] | None, generation_prompt: bool) -> str:
        kwargs = dict(self.options.template_kwargs)
        if self.options.date is not None:
            kwargs.setdefault("strftime_now", self.options.date.strftime)
        tokenizer: Any = self.tokenizer  # the annotations of transformers allow less than it does
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt, tools=tools, **kwargs
        )
        return str(text)


def tells_the_date(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Tell whether the chat template writes the day on which it is rendered."""
    return tokenizer is not None and "strftime_now" in str(tokenizer.chat_template)


def _is_content(node: jinja2.nodes.Node) -> bool:
    """Tell whether a template's expression is the content of a message, maybe filtered or sliced."""
    match node:
        case jinja2.nodes.Filter() | jinja2.nodes.Test():
            return node.node is not None and _is_content(node.node)
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Slice()):
            return _is_content(node.node)
        case jinja2.nodes.Getattr(attr="content"):
            return _is_message(node.node)
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
            return _is_message(node.node)
    return False


def _is_message(node: jinja2.nodes.Node) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.name in LOOP_NAMES


def _without_generation_marks(source: str) -> str:
    """Drop the tags that mark what was generated; transformers knows them, plain Jinja does not."""
    for dash in ("{%- ", "{% "):
        for end in (" -%}", " %}"):
            source = source.replace(f"{dash}generation{end}", "").replace(f"{dash}endgeneration{end}", "")
    return source
