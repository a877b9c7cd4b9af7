"""A template that tells the day: one day for a run and for what it made, whenever that is continued or read (A11)."""

from __future__ import annotations

import datetime
import json
import shutil
from types import SimpleNamespace

import pytest
from tiny_run import CHAT_TEMPLATE, make_tokenizer, run_options

from trainer.config import load_config
from trainer.data.prepared import open_prepared
from trainer.data.sources import Part, read
from trainer.hidden_states.extract import run_extract
from trainer.prepare.prepare import run_prepare
from trainer.target.chat_date import CHAT_DATE, with_date

FIRST, NEXT = datetime.date(2026, 1, 2), datetime.date(2026, 1, 3)


@pytest.fixture
def today(monkeypatch):
    """Set the day that it is."""

    def at(day: datetime.date) -> None:
        fixed = SimpleNamespace(today=lambda: day, fromisoformat=datetime.date.fromisoformat)
        monkeypatch.setattr("trainer.target.chat_date.datetime", SimpleNamespace(date=fixed))

    return at


@pytest.fixture
def options(target_dir, tmp_path):
    """Return the settings of a run on a target whose template tells the day, and a chat."""
    target = shutil.copytree(target_dir, tmp_path / "target")
    make_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE).save_pretrained(target)
    data = tmp_path / "chats.jsonl"
    talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "The answer."}]
    data.write_text(json.dumps({"messages": talk}) + "\n")
    assert len(list(read(Part(str(data))))) == 1
    return [*run_options(target, data, tmp_path / "run"), "data.workers=1"]


def test_a_run_keeps_its_day(options, today):
    today(FIRST)
    config = with_date(load_config(None, options), (load_config(None, options).output / "run.yaml",))
    assert config.data.date == FIRST
    config.save(config.output / "run.yaml")
    today(NEXT)
    assert with_date(load_config(None, options), (config.output / "run.yaml",)).data.date == FIRST
    assert with_date(load_config(None, options), ()).data.date == NEXT
    assert load_config(config.output / "run.yaml", []).data.date == FIRST


def test_a_template_without_a_day_needs_none(target_dir, data_file, tmp_path, today):
    today(FIRST)
    config = load_config(None, run_options(target_dir, data_file, tmp_path / "run"))
    assert with_date(config, ()).data.date is None


def test_prepared_data_keeps_its_day(options, today, tmp_path, capsys):
    today(FIRST)
    directory = run_prepare(load_config(None, options))
    tokenizer = make_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE)
    (document,) = open_prepared(directory, tokenizer, len(tokenizer), 64)
    assert tokenizer.decode(document.input_ids).startswith("02 Jan 2026<|user|>a?")
    today(NEXT)
    run_prepare(load_config(None, options))
    assert "prepared already" in capsys.readouterr().out


def test_hidden_states_keep_their_day(options, today, tmp_path, capsys):
    today(FIRST)
    states = run_extract(load_config(None, options))
    assert json.loads((states / CHAT_DATE).read_text()) == {"data.date": "2026-01-02"}
    today(NEXT)
    capsys.readouterr()
    run_extract(load_config(None, options))
    assert "hidden states of all documents are there" in capsys.readouterr().out
