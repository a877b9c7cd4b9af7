"""Files and directories appear whole or not at all, and a broken attempt never harms what was there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from peagle_core.atomic import finish, new_directory, new_file, partial_of

EXISTING = pytest.mark.parametrize("existing", ["refuse", "replace"])


@EXISTING
def test_it_appears_only_when_the_block_is_done(tmp_path, existing):
    with new_directory(tmp_path / "a", existing) as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_attempt_leaves_the_old_one_and_the_next_attempt_replaces_it(tmp_path):
    with new_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "a", existing="replace") as partial:
        (partial / "x").write_text("2")
        raise RuntimeError
    assert (tmp_path / "a" / "x").read_text() == "1"
    with new_directory(tmp_path / "a", existing="replace") as partial:
        assert not any(partial.iterdir())
        (partial / "y").write_text("3")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "y"]


def test_what_exists_is_refused_before_and_after(tmp_path):
    with pytest.raises(FileExistsError), new_directory(tmp_path / "a"):
        (tmp_path / "a").mkdir()
    with pytest.raises(FileExistsError), new_directory(tmp_path / "a"):
        raise AssertionError("the block was entered")
    assert [p.name for p in tmp_path.rglob("*")] == ["a"]


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]
    with new_file(tmp_path / "a") as partial:
        partial.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "new")]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_only_what_nobody_writes_any_more_is_removed(tmp_path, kind):
    """Left by a process that has ended, and by one whose id this process has now, as in a container started again."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    for owner in (ended.pid, os.getpid(), os.getppid()):
        left = tmp_path / f".a[1].partial-{owner}"
        left.touch() if kind == "file" else left.mkdir()
    (tmp_path / ".b.partial-0").touch()
    with new_file(tmp_path / "a[1]") if kind == "file" else new_directory(tmp_path / "a[1]") as partial:
        partial.touch()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f".a[1].partial-{os.getppid()}", ".b.partial-0", "a[1]"}


def test_what_is_finished_never_replaces(tmp_path):
    partial = partial_of(tmp_path / "a.jsonl")
    partial.write_text("1")
    finish(partial, tmp_path / "a.jsonl")
    partial.write_text("2")
    with pytest.raises(FileExistsError):
        finish(partial, tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "1"
