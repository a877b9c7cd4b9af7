"""Stopped at any point, a run continues, and ends with the bytes of an undisturbed one; other settings do not."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import threading

import pytest
from answer_server import Reply, answer, speaking

from peagle_core.errors import InputError
from trainer.__main__ import main
from trainer.regenerate import regenerate
from trainer.regenerate.journal import Journal
from trainer.storage.resumable import locked

TALKS = 15


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    ask = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": ""}]
    path.write_text("".join(json.dumps({"messages": ask * (1 + i % 3), "id": i}) + "\n" for i in range(TALKS)))
    return path


@pytest.fixture
def speaker():
    """Answers late in varying order, but always the same."""
    chance = random.Random(7)
    with speaking(lambda r: Reply(answer(r).content, delay=0.003 * chance.random())) as speaker:
        yield speaker


@pytest.fixture
def options(target_dir, data, speaker):
    return [f"target={target_dir}", f"data.train={data}", "device=cpu", f"regenerate.url={speaker.url}"]


@pytest.fixture
def run(options):
    """(file to write, overrides) -> exit code"""
    return lambda to, *more: main(["regenerate", *options, "regenerate.concurrency=3", *more, "--to", str(to)])


@pytest.fixture
def undisturbed(run, tmp_path):
    assert run(tmp_path / "undisturbed.jsonl") == 0
    return (tmp_path / "undisturbed.jsonl").read_bytes()


@pytest.fixture
def left_by_a_kill(run, tmp_path, monkeypatch):
    """What lies in answers.jsonl.partial when a run was killed after its last answer."""
    place = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(regenerate, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(place) == 130
    assert not place.exists()
    return place.with_name("answers.jsonl.partial")


def test_a_journal_cut_anywhere_is_continued(run, undisturbed, left_by_a_kill, speaker, tmp_path):
    whole = (left_by_a_kill / "journal").read_bytes()
    kept = shutil.copytree(left_by_a_kill, tmp_path / "kept")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    around = (end + change for end in ends[::6] for change in (-1, 0, 1))
    cuts = [0, *around, *random.Random(1).sample(range(len(whole)), 3)]
    answers = tmp_path / "answers.jsonl"
    for cut in cuts:
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
        shutil.copytree(kept, left_by_a_kill)
        (left_by_a_kill / "journal").write_bytes(whole[:cut])
        asked = len(speaker.requests)
        assert run(answers) == 0
        lost = whole.splitlines()[sum(end <= cut for end in ends) :]
        assert len(speaker.requests) - asked == sum(line.count(b'"finish_reason"') for line in lost)
        assert answers.read_bytes() == undisturbed
        answers.unlink()
        assert not left_by_a_kill.exists()


@pytest.mark.parametrize("step", ["finish", "shutil.rmtree"])
def test_a_run_killed_in_its_last_steps_has_nothing_left_to_ask(run, undisturbed, speaker, tmp_path, monkeypatch, step):
    answers, asked = tmp_path / "answers.jsonl", len(speaker.requests)
    with monkeypatch.context() as patch:
        patch.setattr(f"trainer.regenerate.regenerate.{step}", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(answers) == 130
    assert answers.exists() == (step == "shutil.rmtree")
    assert run(answers) == 0
    assert len(speaker.requests) == 2 * asked
    assert answers.read_bytes() == undisturbed
    names = (f"{name}{end}" for name in ("undisturbed", "answers") for end in (".jsonl", ".regenerate.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", *names}


def test_a_damaged_journal_is_not_continued(run, left_by_a_kill, capsys):
    journal = left_by_a_kill / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    for damage in ([b"3 {tor\n"], [b"99 {}\n"], [b"\0\0\n"], [b"3\n"], [lines[3]]):
        journal.write_bytes(b"".join([*lines[:3], *damage, *lines[3:]]))
        assert run(left_by_a_kill.with_suffix("")) == 1
        assert "is damaged; remove" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("regenerate.temperature=0.5", "regenerate.temperature = None, this run has 0.5"),
        ("regenerate.max_tokens=9", "regenerate.max_tokens = 2048, this run has 9"),
        ("regenerate.seed=1", "regenerate.seed = None, this run has 1"),
        ("regenerate.extra_body={top_k: 1}", "regenerate.extra_body = {}, this run has {'top_k': 1}"),
        ("target={tmp}/other", "was made with target = "),
        ("another model", "regenerate.model = org/tiny, this run has org/other"),
        ("changed data", "was made with sources = ['data.jsonl ("),
    ],
)
def test_other_settings_do_not_continue(run, left_by_a_kill, target_dir, data, speaker, tmp_path, capsys, change, says):
    answers = tmp_path / "answers.jsonl"
    shutil.copytree(target_dir, tmp_path / "other")
    original, own = data.read_bytes(), speaker.models
    more = [change.replace("{tmp}", str(tmp_path))] if "=" in change else []
    if change == "another model":
        speaker.models = Reply({"data": [{"id": "org/other"}]})
        more = ["regenerate.model=org/other"]
    if change == "changed data":
        data.write_bytes(original + b"\n")
    for _ in ("unfinished", "finished"):
        asked = len(speaker.requests)
        assert run(answers, *more) == 2
        assert says in capsys.readouterr().err
        assert len(speaker.requests) == asked
        data_now, now = data.read_bytes(), speaker.models
        data.write_bytes(original)
        speaker.models = own
        assert run(answers) == 0
        data.write_bytes(data_now)
        speaker.models = now


def test_data_that_grows_meanwhile_is_answered_as_it_was(run, undisturbed, data, speaker, tmp_path, capsys):
    answers, talking, first = tmp_path / "answers.jsonl", speaker.reply, len(speaker.requests)

    def growing(request):
        if request.number == first + 2:
            with data.open("a") as file:
                file.write('{"prompt": "more"}\n')
        return talking(request)

    speaker.reply = growing
    assert run(answers) == 0
    assert answers.read_bytes() == undisturbed
    assert run(answers) == 2
    assert "was made with sources = ['data.jsonl (" in capsys.readouterr().err


def test_other_speed_and_another_place_of_the_server_do(run, left_by_a_kill, undisturbed, tmp_path):
    (left_by_a_kill / "journal").write_bytes(b"")
    with speaking() as elsewhere:
        more = ["regenerate.concurrency=9", "regenerate.timeout=5", "regenerate.retries=0"]
        assert run(tmp_path / "answers.jsonl", *more, f"regenerate.url={elsewhere.url}") == 0
        assert elsewhere.requests
    assert (tmp_path / "answers.jsonl").read_bytes() == undisturbed


def test_what_is_finished_is_not_asked_again_nor_overwritten(run, undisturbed, speaker, tmp_path, capsys):
    path, asked = tmp_path / "undisturbed.jsonl", len(speaker.requests)
    speaker.models = Reply(None)  # the server is not needed
    assert run(path) == 0
    assert "regenerated already" in capsys.readouterr().out
    path.write_bytes(undisturbed[:-2])
    assert run(path) == 2
    assert "was changed since it was made" in capsys.readouterr().err
    (tmp_path / "undisturbed.regenerate.json").write_text("[]")
    assert run(path) == 2
    assert "was not made by regenerate" in capsys.readouterr().err
    assert path.read_bytes() == undisturbed[:-2]
    assert len(speaker.requests) == asked


def test_two_runs_do_not_write_to_one_place(run, undisturbed, tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    with locked(tmp_path / "answers.jsonl.partial", "regenerate"):
        assert run(answers) == 1
    assert "another regenerate is writing here" in capsys.readouterr().err
    assert run(answers) == 0
    assert answers.read_bytes() == undisturbed


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_at_once_and_it_continues(run, undisturbed, speaker, tmp_path, capsys, kind):
    answers, talking = tmp_path / "answers.jsonl", speaker.reply
    begin = len(speaker.requests)
    over = threading.Event()

    def stopping(request):
        if request.number == begin + 8:
            os.kill(os.getpid(), kind)
        if request.number >= begin + 8:
            over.wait(60)  # in the middle of an answer that would take for ever
        return talking(request)

    speaker.reply = stopping
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(answers) == 128 + kind
    over.set()
    said = capsys.readouterr()
    assert f"{kind.name}: stopped after " in said.out
    assert "run it again to continue" in said.out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    speaker.reply = talking
    assert run(answers) == 0
    assert answers.read_bytes() == undisturbed


def full_after(count):
    """os.write of a disk that takes `count` bytes more."""
    left, write = [count], os.write

    def limited(handle, content):
        if os.readlink(f"/proc/self/fd/{handle}").endswith("/journal"):
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            content = content[: left[0]]
            left[0] -= len(content)
        return write(handle, content)

    return limited


@pytest.mark.parametrize("room", [0, 1, 500, 1500])
def test_a_full_disk_is_one_sentence_and_what_fitted_is_kept(run, undisturbed, tmp_path, monkeypatch, capsys, room):
    answers = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_after(room))
        assert run(answers) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "answers.jsonl.partial: cannot be written (No space left on device); run it again to continue" in error
    journal = (tmp_path / "answers.jsonl.partial" / "journal").read_bytes()
    assert len(journal) <= room
    assert journal[-1:] in (b"", b"\n")
    assert run(answers) == 0
    assert answers.read_bytes() == undisturbed


def test_the_journal_gives_back_the_order_and_misses_what_is_missing(tmp_path):
    journal = Journal(tmp_path / "journal", 3)
    for number in (2, 0):
        journal.append(number, {"a": number, "é": "\n"})
    with pytest.raises(InputError, match="has no record 1"):
        list(journal.records())
    journal.append(1, {})
    assert list(journal.records()) == ['{"a": 0, "é": "\\n"}\n'.encode(), b"{}\n", '{"a": 2, "é": "\\n"}\n'.encode()]
    journal.close()
