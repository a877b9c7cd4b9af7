"""Small chat templates of the shapes that released models have, and byte-level tokenizers for them.

The templates are ours; those of released models are read from ../shared/cases/templates where that folder is there.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.chat.template import ChatOptions
from trainer.data.record_tokens import RecordTokens

PLACES = [parent / "shared" / "cases" / "templates" for parent in Path(__file__).parents[3:]]
RELEASED = next((place for place in PLACES if place.is_dir()), PLACES[0])
DAY = datetime.date(2026, 1, 2)

TAGS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# An empty block for reasoning before the last answer, also where nobody reasoned; off: the prompt closes it.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ (m.reasoning_content or '').strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The prompt opens the block, so it is no prefix of an answer without reasoning.
OPENS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n' if m.reasoning_content else '' }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Reads parts, wants turns to alternate, ends a turn with an id that is not the tokenizer's.
ALTERNATES = (
    "{{ bos_token }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}{{ part.text | trim }}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
# Writes the end of a text behind that of the turn.
TWO_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# The target writes a header before its answer; reasoning stands under another key; the day is told.
CHANNELS = (
    "<|start|>system<|message|>{{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
    "<|start|>assistant to={{ m.tool_calls[0].function.name }}<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>{% elif m.role == 'assistant' %}"
    "{% if loop.last and m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Wants the arguments of a call as text, which the endpoint never gives.
TEXT_ARGUMENTS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template with the special tokens of its tokenizer. ends: the tokens that generation_config names."""

    template: str
    eos: str
    ends: tuple[str, ...]
    special: tuple[str, ...] = ()
    bos: str = "<|bos|>"

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Make a tokenizer with one token per byte and the special ones."""
        alphabet = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        raw = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        more = [token for token in dict.fromkeys((*self.ends, *self.special)) if token not in (self.eos, self.bos)]
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, eos_token=self.eos, bos_token=self.bos, extra_special_tokens=more,
            chat_template=self.template,
        )  # fmt: skip

    def options(self, tokenizer: PreTrainedTokenizerFast, **kwargs: object) -> ChatOptions:
        return ChatOptions(kwargs, DAY, frozenset(tokenizer.convert_tokens_to_ids(list(self.ends))))


IM = ("<|im_start|>",)
OURS = {
    "tags": Family(TAGS, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), IM),
    "thinks": Family(THINKS, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), IM),
    "opens": Family(OPENS, "<|im_end|>", ("<|im_end|>",), IM),
    "alternates": Family(ALTERNATES, "<eos>", ("<eos>", "<end_of_turn>"), ("<start_of_turn>",), "<bos>"),
    "two_ends": Family(TWO_ENDS, "<|endoftext|>", ("<|endoftext|>", "<|end|>"), ("<|user|>", "<|assistant|>")),
    "channels": Family(
        CHANNELS, "<|return|>", ("<|return|>", "<|call|>"), ("<|start|>", "<|end|>", "<|message|>", "<|channel|>")
    ),
    "text_arguments": Family(TEXT_ARGUMENTS, "<|end|>", ("<|end|>",), ("<|user|>", "<|assistant|>")),
}
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
DEEPSEEK = "|User| |Assistant| |tool▁calls▁begin| |tool▁calls▁end| |tool▁call▁begin| |tool▁call▁end| |tool▁sep|"
WIDE = "\uff5c"  # DeepSeek's bar
# eos, what generation_config names, other special tokens, bos: as the released models have them.
KNOWN: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {
    "deepseekv3": (
        f"<{WIDE}end▁of▁sentence{WIDE}>", (f"<{WIDE}end▁of▁sentence{WIDE}>",),
        tuple(f"<{name}>".replace("|", WIDE) for name in DEEPSEEK.split()), f"<{WIDE}begin▁of▁sentence{WIDE}>",
    ),
    "gemma3": ("<eos>", ("<eos>", "<end_of_turn>"), ("<start_of_turn>",), "<bos>"),
    "gptoss": ("<|return|>", ("<|return|>", "<|call|>"), OURS["channels"].special, "<|startoftext|>"),
    "llama3_1": ("<|eot_id|>", ("<|eot_id|>", "<|eom_id|>"), LLAMA, "<|begin_of_text|>"),
    "llama3_2": ("<|eot_id|>", ("<|eot_id|>", "<|eom_id|>"), LLAMA, "<|begin_of_text|>"),
    "phi3": ("<|endoftext|>", ("<|endoftext|>", "<|end|>"), ("<|user|>", "<|assistant|>", "<|system|>"), "<s>"),
}  # fmt: skip


def released() -> dict[str, Family]:
    """Return the families of the templates in ../shared/cases/templates; none where that folder is absent."""
    families = {}
    for path in sorted(RELEASED.glob("*.jinja")):
        eos, ends, special, bos = KNOWN.get(path.stem, ("<|im_end|>", ("<|im_end|>", "<|endoftext|>"), IM, "<s>"))
        families[path.stem] = Family(path.read_text(), eos, ends, special, bos)
    return families


FAMILIES = OURS | released()


def supervised(family: Family, record: dict[str, object], **kwargs: object) -> list[str]:
    """Return the texts that are supervised in a record, one for each run of generated tokens."""
    tokenizer = family.tokenizer()
    found = RecordTokens(tokenizer, family.options(tokenizer, **kwargs)).read(record)
    texts: list[str] = []
    for ids, mask in found.documents:
        runs: list[list[int]] = []
        for place, (token, on) in enumerate(zip(ids, mask, strict=True)):
            if on and not mask[place - 1]:
                runs.append([])
            if on:
                runs[-1].append(token)
        texts += [tokenizer.decode(run) for run in runs]
    return texts
