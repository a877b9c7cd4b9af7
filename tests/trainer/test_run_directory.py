"""run.yaml and the JSON records of a run directory: whoever writes them may fail or be killed in the middle."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config import RunConfig
from trainer.train.run_directory import read_record, write_record

ROOM = 100  # bytes that the file system takes before it says no


def in_a_process_without_room(work: Callable[[], object], killed: bool) -> int:
    """Run `work` in a fork that may write files of ROOM bytes. killed: more ends it by a signal instead of an error.

    Returns its exit status: 1 for OSError, else as os.waitpid has it.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))
            work()
            os._exit(0)
        except OSError:
            os._exit(1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("killed", "ends"), [(False, 1), (True, -signal.SIGXFSZ)])
@pytest.mark.parametrize("name", ["metrics.json", "run.yaml"])
def test_a_write_that_ends_in_the_middle_leaves_the_old_file(run_config: RunConfig, tmp_path, name, killed, ends):
    path = tmp_path / "run" / name

    def write(step: int, padding: int) -> None:
        if name == "run.yaml":
            run_config.model_copy(update={"seed": step, "target": "x" * padding}).save(path)
        else:
            write_record(path, {"step": step, "padding": "x" * padding})

    write(1, 0)
    before = path.read_bytes()
    assert in_a_process_without_room(lambda: write(2, ROOM), killed) == ends
    assert path.read_bytes() == before
    write(3, ROOM)
    assert path.read_bytes() != before
    assert killed or [file.name for file in path.parent.iterdir()] == [name]


def test_a_record_is_read_as_it_was_written(tmp_path: Path):
    write_record(tmp_path / "new" / "data.json", {"train": {"documents": 3}})
    assert read_record(tmp_path / "new" / "data.json") == {"train": {"documents": 3}}
    assert read_record(tmp_path / "new" / "metrics.json") is None
