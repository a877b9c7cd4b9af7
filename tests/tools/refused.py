"""See a conversion refused."""

from __future__ import annotations

from pathlib import Path

from tools.convert.__main__ import main


def refuse(capsys, source: Path, destination: Path, message: str, *options: object) -> None:
    """Convert to vLLM's format and see it refused: one sentence with `message`, exit code 1, and the tree as it was."""
    root = source.parent
    before = sorted(root.rglob("*"))
    capsys.readouterr()
    assert main([str(source), str(destination), "--to", "vllm", *map(str, options)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(root.rglob("*")) == before
