"""Settle the day that a chat template tells (`strftime_now`): one day for a run, whenever it goes on.

Without this, a run resumed or hidden states read on the next day would meet other documents.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from trainer.chat.template import tells_the_date
from trainer.config import RunConfig
from trainer.parallel.processes import from_main
from trainer.target.load import load_tokenizer

# Beside stored hidden states: the day that their documents were rendered with.
CHAT_DATE = "chat_date.json"
KEY = "data.date"


def with_date(config: RunConfig, saved: Iterable[Path]) -> RunConfig:
    """Return the configuration with data.date, where the target's chat template tells the day and none is given.

    saved: files that may say the day of what is continued or read (run.yaml, an index, settings, `CHAT_DATE`); the
    first that does counts, else it is today. Collective: every process must call it.
    """
    if config.data.date is not None or not tells_the_date(load_tokenizer(config.target)):
        return config
    found = next((day for path in saved if (day := _read_date(path)) is not None), None)
    day = from_main(found or datetime.date.today())
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def date_setting(day: datetime.date | None) -> dict[str, str | None]:
    """Return the day as a setting of what is made with it."""
    return {KEY: None if day is None else day.isoformat()}


def _read_date(path: Path) -> datetime.date | None:
    """Return the day that a file says; None where there is no such file or it says none."""
    try:
        content: Any = yaml.safe_load(path.read_bytes()) if path.suffix == ".yaml" else json.loads(path.read_bytes())
        day = content["data"]["date"] if path.suffix == ".yaml" else content.get("settings", content).get(KEY)
        return None if day is None else datetime.date.fromisoformat(str(day))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return None
