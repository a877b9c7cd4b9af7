"""Regenerate data.train: replace every answer by the target's own, from an OpenAI-compatible server.

Work goes on in <answers>.partial, where the journal of finished records lies; the file of answers gets its name when
all of it is there, in the order of the data. What it holds does not depend on the order in which answers came, nor on
how often the run was killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from peagle_core.atomic import finish, partial_of, replace_file
from peagle_core.errors import InputError
from trainer.chat.messages import CUT
from trainer.chat.reasoning import answer_form
from trainer.chat.template import ChatOptions, ChatTemplate
from trainer.config import RunConfig
from trainer.data.prepared import is_prepared
from trainer.data.sources import survey
from trainer.errors import ConfigError
from trainer.regenerate.ask_all import ask_all
from trainer.regenerate.journal import Journal
from trainer.regenerate.openai_server import AnswerServer, Served
from trainer.regenerate.questions import questions
from trainer.storage.index import sha256_of
from trainer.storage.resumable import locked, resume_or_begin
from trainer.storage.settings import refuse_other_settings
from trainer.target.load import load_tokenizer

JOURNAL, ANSWERS = "journal", "answers"  # in the partial directory
ABOUT_SUFFIX = ".regenerate.json"
MODEL = "regenerate.model"


def run_regenerate(config: RunConfig, path: Path | None = None) -> signal.Signals | None:
    """Write `path` (default: output_dir/answers.jsonl) and, beside it, how it was made; a killed run is continued.

    Returns the signal that stopped it early, else None. Raises ConfigError when `path`, finished or not, was made with
    other settings, by another model or from other data, and InputError, one sentence, for bad data, a server that does
    not answer and a disk that takes no more.
    """
    path = path or config.output / "answers.jsonl"
    if path.suffix != ".jsonl":
        raise ConfigError(f"--to {path}: must end in .jsonl, as data.train wants it")
    if is_prepared(config.data.train):
        raise ConfigError(f"data.train: {config.data.train[0]} is prepared, regenerate needs the text it was made from")
    settings = _settings(config)
    if path.exists():
        _check_finished(path, settings)
        return None
    skip_bad = config.data.on_bad_record == "skip"
    total, kinds = _check_data(config.data.train, skip_bad)
    chat = ChatOptions(config.data.chat_template_kwargs, config.data.date)
    reasoning = answer_form(ChatTemplate(load_tokenizer(config.target), chat)) if True in kinds else None
    with asyncio.Runner() as runner:
        server = AnswerServer(config.regenerate, config.data.chat_template_kwargs)
        try:
            served = runner.run(_meet(server, kinds))
            _introduce(config.target, config.regenerate.url, served)
            settings[MODEL] = served.model
            with locked(partial_of(path), "regenerate"):
                resume_or_begin(partial_of(path), settings)
                with closing(Journal(partial_of(path) / JOURNAL, total)) as journal:
                    asking = ask_all(config.data.train, config.regenerate, server, journal, reasoning, skip_bad)
                    if stopped := runner.run(asking):
                        done = f"{len(journal)} of {total} records"
                        print(f"{stopped.name}: stopped after {done}; run it again to continue")
                        return stopped
                    about = {"settings": settings, "server": {"url": config.regenerate.url, "owned_by": served.owner}}
                    _finish(path, journal, about)
        except OSError as error:
            raise InputError(
                f"{partial_of(path)}: cannot be written ({error.strerror}); run it again to continue"
            ) from None
        finally:
            runner.run(server.close())
    return None


def about_path(path: Path) -> Path:
    """Return the name of the file that says how the answers in `path` were made."""
    return path.with_name(path.name.removesuffix(".jsonl") + ABOUT_SUFFIX)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what the answers depend on, so that two runs with the same may work on the same file."""
    keys = ("model", "max_tokens", "temperature", "top_p", "seed", "extra_body")
    surveys = [(source, survey(source, sys.maxsize)) for source in config.data.train]
    return {
        "target": config.target,
        "data.chat_template_kwargs": config.data.chat_template_kwargs or None,
        "data.on_bad_record": config.data.on_bad_record,
        **{f"regenerate.{key}": getattr(config.regenerate, key) for key in keys},
        "sources": [f"{Path(source).name} ({found.digest})" for source, found in surveys],
    }


def _check_finished(path: Path, settings: dict[str, Any]) -> None:
    try:
        about = json.loads(about_path(path).read_bytes())
        then, expected = dict(about["settings"]), about["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: exists and was not made by regenerate; choose another --to") from None
    if settings[MODEL] is None:
        settings = {**settings, MODEL: then.get(MODEL)}  # the server need not be there any more
    refuse_other_settings(path, then, settings)
    if sha256_of(path) != expected:
        raise ConfigError(f"{path}: was changed since it was made; choose another --to, or remove it")
    if partial_of(path).is_dir():  # killed after its last step but one
        with locked(partial_of(path), "regenerate"):
            shutil.rmtree(partial_of(path))
    print(f"{path}: regenerated already, its checksum is right")


def _check_data(sources: tuple[str, ...], skip_bad: bool) -> tuple[int, set[bool]]:
    """Read every record; return (how many, which kinds there are: True for conversations, False for texts to continue).

    What is malformed must show before hours of answers depend on the data being as it is.
    """
    total, kinds, skipped = 0, set(), Counter[str]()
    asked = questions(sources, skipped if skip_bad else None)
    for question in tqdm(asked, desc="read", unit="record", leave=False, dynamic_ncols=True):
        total += 1
        if question.turns or question.prompt is not None:
            kinds.add(question.is_chat)
    for reason, count in skipped.most_common(5):
        print(f"{count} records skipped: {reason}")
    if not kinds:
        raise InputError(f"{', '.join(sources)}: nothing to ask, no record has a question")
    return total, kinds


def _is_empty(answer: dict[str, Any]) -> bool:
    """Tell whether the target ended without a word. answer: a message, or a record whose text was continued."""
    said = [answer["response"]] if "response" in answer else [
        value for key, value in answer.items() if key not in ("role", "finish_reason")
    ]  # fmt: skip
    return not any(said)


async def _meet(server: AnswerServer, kinds: set[bool]) -> Served:
    served = await server.connect()
    for is_chat in kinds:
        await server.try_out(is_chat)
    return served


def _introduce(target: str, url: str, served: Served) -> None:
    context = f", context {served.context} tokens" if served.context else ""
    print(f"server: {url}, model {served.model}{context}")
    if Path(served.model).name != Path(target).name:
        print(
            f"note: the target is called {target}, the server's model {served.model}; only answers of the very "
            "target are of use"
        )


def _finish(path: Path, journal: Journal, about: dict[str, Any]) -> None:
    """Write the answers in the order of the data and what is known of them; then nothing else is needed any more.

    The answers get their name last: whenever that is there, all is done.
    """
    counts, ends, digest = Counter[str](), Counter[str](), hashlib.sha256()
    refusal = ""
    partial = partial_of(path)
    with (partial / ANSWERS).open("wb") as file:
        for line in journal.records():
            file.write(line)
            digest.update(line)
            record = json.loads(line)
            answers = [a for a in record.get("messages", [record]) if "finish_reason" in a]
            ends.update(answer["finish_reason"] for answer in answers)
            empty = sum(map(_is_empty, answers))
            counts["empty"] += empty
            counts["empty_continuations"] += empty * ("prompt" in record)
            counts["records"] += 1
            counts["completion_tokens"] += record.get("completion_tokens", 0)
            counts["refused"] += "error" in record
            counts["without_question"] += not answers and "error" not in record
            refusal = refusal or f"{record['source']}: {record['error']}" if "error" in record else refusal
    if not ends:
        shutil.rmtree(partial)
        raise InputError(f"the server refused every record, for instance {refusal}")
    about |= {
        "answers": ends.total(),
        "finish_reasons": dict(sorted(ends.items())),
        **{key: counts[key] for key in ("records", "completion_tokens", "refused", "without_question", "empty")},
        "first_refusal": refusal or None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": digest.hexdigest(),
    }
    replace_file(about_path(path), (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
    finish(partial / ANSWERS, path)
    shutil.rmtree(partial)
    print(
        f"{counts['records']} records -> {ends.total()} answers, {counts['completion_tokens']} tokens; {ends[CUT]} of "
        f"them cut at the maximum length; {counts['refused']} records refused by the server, "
        f"{counts['without_question']} without a question"
    )
    if counts["empty"]:
        why = "; a 'prompt' is continued as raw text, a question to a chat model belongs into 'messages'"
        print(f"note: {counts['empty']} answers are empty{why if counts['empty_continuations'] else ''}")
    if refusal:
        print(f"refused, for instance: {refusal}")
    print(f"written: {path}; train with data.train={path}")
