"""Compile a kernel for a GPU that is not there (mechanism: see tests/peagle_core/test_kernels_compile.py)."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from interpreter import INTERPRETED

compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels do not compile")


def compiles(kernel, types: str, constants: dict[str, Any], capability: int, record_property) -> None:
    """Compile with a server's types; nothing may be spilled, as far as the machine code tells.

    types: lines of a type and the arguments that have it; capability: 90 is Hopper, 100 Blackwell.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    type_of = {arg: line.split()[0] for line in types.strip().splitlines() for arg in line.split()[1:]}
    signature = {arg: "constexpr" if arg in constants else type_of[arg] for arg in kernel.arg_names}
    values = {(kernel.arg_names.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    assembly = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
    assert len(assembly["cubin"]) > 0
    resources = _resource_usage(Path(triton.__file__).parent, assembly["cubin"])
    record_property("resources", resources)
    assert resources is None or resources["STACK"] == resources["LOCAL"] == 0


def _resource_usage(triton: Path, cubin: bytes) -> dict[str, int] | None:
    """Registers, and bytes of stack and local memory, which hold what is spilled; None where nobody can tell."""
    tool = triton / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    return {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)} or None
