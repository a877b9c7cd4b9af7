"""A SGLang plugin for tests: a SGLang in which what $RENAMED_TARGET says has another name."""

from __future__ import annotations

import os
import pkgutil


def register() -> None:
    """Entry point `sglang.srt.plugins`."""
    path, _, name = os.environ["RENAMED_TARGET"].rpartition(".")
    owner = pkgutil.resolve_name(path)
    setattr(owner, f"new_{name}", getattr(owner, name))
    delattr(owner, name)
