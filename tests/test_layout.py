"""What keeps the code easy to find one's way in: short files, and few of them in one folder of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MOST_LINES = 300
MOST_FILES = 10


def python_files(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, folder
    return files


@pytest.mark.parametrize("folder", ["peagle_core", "sglang_backend", "trainer", "tools", "tests"])
def test_no_file_is_longer_than_300_lines(folder):
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in python_files(folder)}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_no_folder_of_the_trainer_has_more_than_10_files():
    folders = [path.parent for path in python_files("trainer")]
    counts = {str(folder.relative_to(ROOT)): folders.count(folder) for folder in set(folders)}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_hooks_before_a_commit_run_the_ruff_of_the_lint():
    (pinned,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ruff==")]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["additional_dependencies"] for hook in hooks if "ruff" in hook["id"]] == [[pinned], [pinned]]
