"""Where a conversion must not write, and when it cannot: it leaves nothing behind, whatever ends it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from refused import refuse
from safetensors.torch import load_file, save_file
from tiny_heads import write_flat

from tools.convert import write
from tools.convert.__main__ import main


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("head/inside", "lies inside the head"),
        ("head", "exists already"),
        ("other", "exists already"),
        ("file", "exists already"),
        ("dangling", "exists already"),
        ("absent/result", "absent: no such directory"),
        ("file/result", "file: no such directory"),
    ],
)
def test_destinations_that_must_not_be_written(tmp_path, capsys, destination, message):
    head = write_flat(tmp_path / "head")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refuse(capsys, head, tmp_path / destination, message)


def test_a_destination_inside_the_source_through_a_link(tmp_path, capsys):
    head = write_flat(tmp_path / "head")
    (tmp_path / "link").symlink_to(head)
    refuse(capsys, head, tmp_path / "link" / "inside", "lies inside the head")


def test_too_small_a_disk_is_seen_before_writing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    refuse(capsys, write_flat(tmp_path / "head"), tmp_path / "result", "the disk has 1.00 kB left")


@pytest.mark.parametrize("step", ["weights", "config", "rename"])
def test_a_disk_that_fills_while_writing(tmp_path, capsys, monkeypatch, step):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    head = write_flat(tmp_path / "head")
    if step == "weights":
        monkeypatch.setattr(write, "save_file", full)
    elif step == "config":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(os, "rename", full)
    refuse(capsys, head, tmp_path / "result", "No space left on device")


def in_child(run: Callable[[], int]) -> int:
    """`run` in a forked process, whose id is returned at once; it exits with what `run` returns."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        code = run()
    except SystemExit as stop:
        code = stop.code
    os._exit(code)


def test_a_real_limit_on_the_size_of_files(tmp_path):
    head = write_flat(tmp_path / "head")

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        return main([str(head), str(tmp_path / "result"), "--to", "vllm"])

    _, status = os.waitpid(in_child(limited), 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_killed_half_way(tmp_path, monkeypatch, number):
    """No DST; nothing at all where the signal can be caught; what a SIGKILL leaves is removed by the next run."""
    head = write_flat(tmp_path / "head")
    ready, say = os.pipe()

    def stuck(tensors, path, **_) -> None:
        save_file(tensors, path)
        os.write(say, b"x")
        signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(write, "save_file", stuck)
        child = in_child(lambda: main([str(head), str(tmp_path / "result"), "--to", "vllm"]))
    os.read(ready, 1)
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not (tmp_path / "result").exists()
    left = [p.name for p in tmp_path.iterdir() if p.name != "head"]
    if number == signal.SIGKILL:
        assert left == [f".result.partial-{child}"]
        mine = tmp_path / f".result.partial-{os.getppid()}"  # of a process that still runs
        mine.mkdir()
        assert main([str(head), str(tmp_path / "result"), "--to", "vllm"]) == 0
        assert sorted(p.name for p in tmp_path.iterdir()) == [mine.name, "head", "result"]
        assert (
            load_file(tmp_path / "result" / "model.safetensors").keys() == load_file(head / "model.safetensors").keys()
        )
    else:
        assert code == 128 + number
        assert left == []
