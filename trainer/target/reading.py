"""Choose how the records of a run are read: by its settings, and by the ids that end a turn of its target."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from peagle_core.end_ids import read_end_ids
from trainer.chat.template import ChatOptions
from trainer.config.sections import DataConfig
from trainer.data.documents import ReadOptions
from trainer.target.load import load_config


def read_options(
    target: str, data: DataConfig, tokenizer: PreTrainedTokenizerBase | None, keep_prompts: bool = False
) -> ReadOptions:
    """Return how to read records for a target; no weights are loaded. Raises InputError for a target without a config.

    keep_prompts: keep what has no answer, to be answered in an evaluation.
    """
    chat = ChatOptions(data.chat_template_kwargs, data.date, read_end_ids(target, tokenizer))
    return ReadOptions(chat, data.on_bad_record == "skip", keep_prompts)


def read_vocab_size(target: str) -> int:
    """Return the vocabulary size that a target's config.json says. Raises InputError where there is none."""
    return int(load_config(target).get_text_config().vocab_size)
