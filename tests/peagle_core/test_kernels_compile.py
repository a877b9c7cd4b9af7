"""Every kernel compiles for Hopper (sm_90) in bfloat16, down to machine code: no GPU is needed for that.

The interpreter checks what the kernels compute; the compiler checks types and shapes that the interpreter lets pass.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

SHAPE = {"HEADS": 8, "GROUP": 4, "HEAD_DIM": 64, "BLOCK_D": 64}
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "PRECISION": "tf32"}
ROWS = "*bf16 Q KC VC K V OUT GRAD GRAD_Q GRAD_K GRAD_V DRAFT TARGET"
SUMS = "*fp32 LSE DELTA GRAD_KC GRAD_VC WEIGHT LOSS"
INDICES = "*i32 FIRST LAST OWN ROW_LOW ROW_HIGH"
SIZES = "i32 num_rows num_keys reach vocab"
SCALES = "fp32 scale plain_scale tv"
TYPES = {
    name: line.split()[0] for line in (ROWS, SUMS, INDICES, SIZES, SCALES) for name in line.split()[1:]
} | {"TARGET_ROW": "*i64", "CORRECT": "*i8"}  # fmt: skip

KERNELS = [
    ("attention_forward", "attention_forward", SHAPE | TILE),
    ("attention_backward", "grad_query", SHAPE | TILE),
    ("attention_backward", "grad_chain_kv", SHAPE | {"BLOCK_M": 32}),
    ("attention_backward", "grad_context_kv", SHAPE | TILE | {"SPLITS": 1}),
    ("attention_backward", "grad_context_kv", SHAPE | TILE | {"SPLITS": 4}),
    ("distillation", "distill_rows", {"HARD": False, "MIXED": False, "WRITE_GRAD": True, "BLOCK": 1024}),
    ("distillation", "distill_rows", {"HARD": False, "MIXED": True, "WRITE_GRAD": True, "BLOCK": 1024}),
    ("distillation", "distill_rows", {"HARD": True, "MIXED": False, "WRITE_GRAD": True, "BLOCK": 1024}),
]


@pytest.mark.parametrize(("module", "name", "constants"), KERNELS)
def test_it_compiles(module: str, name: str, constants: dict[str, Any]):
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"peagle_core.kernels.{module}"), name)
    arguments = kernel.arg_names
    signature = {arg: "constexpr" if arg in constants else TYPES[arg] for arg in arguments}
    # What the runtime finds out by itself: tensors start at multiples of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(arguments) if signature[arg].startswith("*")}
    values = {(arguments.index(arg),): value for arg, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8, "num_stages": 2})
    assert len(compiled.asm["cubin"]) > 0
    if "BLOCK_N" in constants:
        assert "wgmma" in compiled.asm["ptx"], "products run on the tensor cores"
