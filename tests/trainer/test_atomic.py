"""A directory appears whole or not at all, and a broken attempt never harms what was there."""

from __future__ import annotations

import pytest

from peagle_core.atomic import new_directory


def test_it_appears_only_when_the_block_is_done(tmp_path):
    with new_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_attempt_leaves_the_old_one_and_the_next_attempt_replaces_it(tmp_path):
    with new_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("1")
    with pytest.raises(RuntimeError), new_directory(tmp_path / "a") as partial:
        (partial / "x").write_text("2")
        raise RuntimeError
    assert (tmp_path / "a" / "x").read_text() == "1"
    with new_directory(tmp_path / "a") as partial:
        assert not any(partial.iterdir())
        (partial / "y").write_text("3")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "y"]
