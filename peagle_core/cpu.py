"""Which dtype a CPU multiplies fast."""

from __future__ import annotations

from collections.abc import Mapping


def fast_dtype(capabilities: Mapping[str, object]) -> tuple[str, str]:
    """Return the dtype that is fast on a CPU, and why. capabilities: torch.cpu.get_capabilities()."""
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return "bfloat16", f"has {name}"
    return "float32", "has neither avx512_bf16 nor amx_bf16"
