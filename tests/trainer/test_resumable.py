"""One process at a time works in a place, and whoever comes next continues only what has the same settings."""

from __future__ import annotations

import fcntl
import subprocess
import sys

import pytest

from peagle_core.errors import InputError
from trainer.errors import ConfigError
from trainer.storage.resumable import SETTINGS, locked, resume_or_begin


@pytest.mark.slow
def test_the_lock_holds_against_another_process_and_ends_with_it(tmp_path):
    place = tmp_path / "a.partial"
    program = (
        "import sys, time; from pathlib import Path; from trainer.storage.resumable import locked\n"
        "with locked(Path(sys.argv[1]), 'prepare'): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(place)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=r"a\.partial: another prepare is writing here"), locked(place, "prepare"):
            pass
        other.kill()
    with locked(place, "prepare"):
        pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_place_that_was_finished_meanwhile_is_not_taken(tmp_path, monkeypatch, replaced):
    place = tmp_path / "a.partial"

    def finished_just_before(handle, operation):
        place.rename(tmp_path / "a")
        if replaced:
            place.mkdir()

    monkeypatch.setattr(fcntl, "flock", finished_just_before)
    with pytest.raises(InputError, match="finished here just now"), locked(place, "prepare"):
        pass


def test_only_the_same_settings_continue(tmp_path):
    (tmp_path / "stray").write_text("of no known settings")
    resume_or_begin(tmp_path, {"a": 1, "b": None})
    (tmp_path / "work").write_text("done")
    (tmp_path / ".work.partial-1").write_text("torn")
    resume_or_begin(tmp_path, {"a": 1, "b": None})
    assert sorted(p.name for p in tmp_path.iterdir()) == [SETTINGS, "work"]
    with pytest.raises(ConfigError, match="was made with b = None, this run has 2"):
        resume_or_begin(tmp_path, {"a": 1, "b": 2})
    with pytest.raises(ConfigError, match="was made with c = None, this run has 3"):
        resume_or_begin(tmp_path, {"a": 1, "b": None, "c": 3})
