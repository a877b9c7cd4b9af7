"""The CPU reference platform: SGLang's real server on torch alone, for CI, laptops and the demo. Not a fast engine."""

from __future__ import annotations

import os

NAME = "peagle_cpu"  # the entry point's name, and so the value of SGLANG_PLATFORM
ATTENTION_BACKEND = "torch_sdpa"


def selected() -> bool:
    """Return whether the user asked for this platform."""
    return os.environ.get("SGLANG_PLATFORM") == NAME


def activate() -> str | None:
    """Return the platform class, or None unless it was asked for by name: entry point `sglang.srt.platforms`."""
    return "sglang_backend.cpu.platform:CpuReferencePlatform" if selected() else None
