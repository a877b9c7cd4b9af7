"""The target's own questions: what it writes where its chat template expects the user to speak.

A chat model has seen so many conversations that it can play the user, too (Xu et al., "Magpie", arXiv 2406.08464). Its
questions cover what it was tuned on without any data set at hand.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from peagle_core.errors import InputError
from trainer.config.sections import RegenerateConfig
from trainer.regenerate.answer import Refused
from trainer.regenerate.openai_server import AnswerServer

MARK = "QUESTION"
SHORTEST, LONGEST = 16, 600  # characters of a question worth asking
CONCURRENCY = 32


def user_prefix(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> str:
    """Return the text up to the place where the user's first words stand in the target's chat template.

    Raises InputError for a tokenizer without a template, or with one that changes the user's words.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    try:
        text = tokenizer.apply_chat_template([*messages, {"role": "user", "content": MARK}], tokenize=False)
    except Exception as error:  # jinja raises what it likes
        raise InputError(f"the target's chat template cannot be rendered ({error})") from None
    before, found, _ = str(text).partition(MARK)
    if not found:
        raise InputError("the target's chat template does not show the user's words")
    return before


def is_worth_asking(text: str) -> bool:
    """Return whether a sampled text can stand as a question.

    It has some length, whole characters, no template around it.
    """
    return SHORTEST <= len(text) <= LONGEST and "\N{REPLACEMENT CHARACTER}" not in text and "<|" not in text


def sampled_questions(prefix: str, count: int, url: str, temperature: float, seed: int) -> list[str]:
    """Ask the server at `url` (".../v1") for `count` user turns; return those that ended and are worth asking.

    Sampled with top_p 0.95 and seeds seed, seed + 1, ... Raises InputError when no server answers.
    """
    config = RegenerateConfig(
        url=url, concurrency=CONCURRENCY, max_tokens=LONGEST // 3, temperature=temperature, top_p=0.95
    )
    return asyncio.run(_sample(AnswerServer(config), prefix, count, seed))


async def _sample(server: AnswerServer, prefix: str, count: int, seed: int) -> list[str]:
    found: list[str] = []
    numbers = iter(range(seed, seed + count))
    try:
        await server.connect()
        with tqdm(total=count, desc="questions", unit="sample", dynamic_ncols=True) as bar:

            async def work() -> None:
                for number in numbers:
                    try:
                        answer = await server.complete(prefix, number)
                    except Refused as error:
                        raise InputError(f"the server refuses the bare template: {error}") from None
                    text = answer.text.strip()
                    if answer.finish_reason == "stop" and is_worth_asking(text):
                        found.append(text)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    finally:
        await server.close()
    return found
