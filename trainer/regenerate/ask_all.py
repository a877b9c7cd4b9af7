"""Ask for what the journal does not have yet, so many at a time; only what is being asked for is in memory."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from tqdm import tqdm

from peagle_core.errors import InputError
from trainer.chat.reasoning import AnswerForm
from trainer.config.sections import RegenerateConfig
from trainer.regenerate.journal import Journal
from trainer.regenerate.openai_server import AnswerServer
from trainer.regenerate.questions import Question, answered, questions

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def ask_all(
    sources: Sequence[str],
    options: RegenerateConfig,
    server: AnswerServer,
    journal: Journal,
    reasoning: AnswerForm | None,
    skip_bad: bool = False,
) -> signal.Signals | None:
    """Ask what the journal lacks. Returns the signal that ended it early (only answers under way are lost), else None.

    reasoning: where the target's template shows it; needed for conversations; skip_bad: leave out records that cannot
    be asked. Raises InputError when the server is gone
    or talks nonsense, OSError when the disk takes no more.
    """
    loop, received = asyncio.get_running_loop(), []
    work = asyncio.ensure_future(_ask_with_bar(_todo(sources, journal, skip_bad), options, server, journal, reasoning))

    def stop(number: signal.Signals) -> None:
        received.append(number)
        work.cancel()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        await work
    except asyncio.CancelledError:
        if not received:
            raise
    except ExceptionGroup as group:  # the first error ended the others
        raise group.exceptions[0] from None
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
    return received[0] if received and len(journal) < journal.total else None


async def _ask_with_bar(
    todo: Iterator[tuple[int, Question]],
    options: RegenerateConfig,
    server: AnswerServer,
    journal: Journal,
    reasoning: AnswerForm | None,
) -> None:
    seed = options.seed
    with tqdm(
        total=journal.total, initial=len(journal), desc="regenerate", unit="record", dynamic_ncols=True, mininterval=1
    ) as bar:

        async def work() -> None:
            for number, question in todo:  # all workers take from the same iterator, which reads when asked
                try:
                    record = await answered(question, server, None if seed is None else seed + number, reasoning)
                except InputError as error:
                    raise InputError(f"{question.origin['source']}: {error}") from None
                journal.append(number, record)
                bar.update()

        ticker = asyncio.create_task(_tell_speed(bar, server))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(options.concurrency, journal.total - len(journal))):
                    group.create_task(work())
        finally:
            ticker.cancel()


def _todo(sources: Sequence[str], journal: Journal, skip_bad: bool) -> Iterator[tuple[int, Question]]:
    every = enumerate(islice(questions(sources, Counter() if skip_bad else None), journal.total))
    return ((number, question) for number, question in every if number not in journal)


async def _tell_speed(bar: tqdm, server: AnswerServer) -> None:
    begin = time.monotonic()
    while True:
        await asyncio.sleep(1)
        speed = server.completion_tokens / (time.monotonic() - begin)
        bar.set_postfix_str(f"{speed:.0f} tokens/s" + (f", asking again: {server.trouble}" if server.trouble else ""))
