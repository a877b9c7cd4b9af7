"""Measure every Triton kernel on real drafter shapes: error against float64, time, and time over the hardware's floor.

    python -m tools.bench kernels                           # needs a CUDA device
    python -m tools.bench kernels --tune                    # also times other block sizes
    TRITON_INTERPRET=1 python -m tools.bench kernels --toy  # checks the script anywhere; its times mean nothing

Shapes are those of drafters for Llama-3.1-8B, GPT-OSS-20B and Qwen3-Coder-30B, one row of S slots, K = 8, r = 0.8,
bfloat16. The ceilings (bandwidth of a copy, FLOP/s of a matrix product) are measured first; a floor is the larger of
bytes / bandwidth and FLOPs / peak, FLOPs counting only scores the mask allows. Beside ours: what one would pick
otherwise, flex_attention with a block mask and SDPA with a dense mask, on the same inputs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peagle_core.attention.base import expand_kv
from peagle_core.attention.torch import TorchAttention
from peagle_core.attention.triton import Blocks, TritonAttention
from peagle_core.cod import sample_elements
from peagle_core.elements import Elements
from peagle_core.errors import InputError
from peagle_core.kernels import runs_on
from peagle_core.loss import chunk_loss, chunk_loss_triton
from peagle_core.mask import dense_mask, may_attend


@dataclass(frozen=True)
class Shape:
    name: str
    heads: int
    kv_heads: int
    head_dim: int
    draft_vocab: int
    slots: int


SHAPES = (
    Shape("Llama-3.1-8B", 32, 8, 128, 32000, 4096),
    Shape("GPT-OSS-20B", 64, 8, 64, 201088, 4096),
    Shape("Qwen3-Coder-30B", 32, 4, 128, 151936, 4096),
)
TOY = (Shape("toy", 4, 2, 16, 300, 24),)
DENSE_LIMIT = 16 * 2**30  # bytes of the dense mask's float form that SDPA may take
LOSS_ROWS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--toy", action="store_true", help="tiny shapes, for the interpreter")
    parser.add_argument("--tune", action="store_true", help="time other block sizes of the attention kernels")
    parser.add_argument("--slots", type=int, help="S of every shape")
    parser.add_argument("--json", type=Path, help="also write the results here")


def milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of one call: CUDA events after warm-up and with a cold L2, or one call on a CPU."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(work, return_mode="median"))
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


@dataclass(frozen=True)
class Ceilings:
    """Hold what was measured: bytes per second of a copy, and FLOP per second of a bfloat16 matrix product."""

    bandwidth: float
    flops: float

    def floor(self, flops: float, num_bytes: float) -> float:
        """Return the least time that the hardware allows, in milliseconds."""
        return max(flops / self.flops, num_bytes / self.bandwidth) * 1e3


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    side, length = (8192, 2**29) if device.type == "cuda" else (64, 2**12)
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.empty(length, device=device, dtype=torch.int8)
    y = torch.empty_like(x)
    copy, product = milliseconds(lambda: y.copy_(x), device), milliseconds(lambda: a @ a, device)
    return Ceilings(2 * length / copy * 1e3, 2 * side**3 / product * 1e3)


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm().clamp(min=1e-30))


class AttentionCase:
    """Hold one shape's inputs, the exact result, and the FLOPs and bytes that no implementation can save."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        loss_mask, doc_ids = torch.ones(shape.slots + 1, dtype=torch.bool), torch.zeros(shape.slots + 1).long()
        rng = torch.Generator().manual_seed(0)
        self.elements = sample_elements(loss_mask, doc_ids, 8, 0.8, generator=rng).order("anchor").to(device)
        self.doc_ids = doc_ids.to(device)
        rows = len(self.elements)
        sizes = [(rows, shape.heads), (rows, shape.kv_heads), (rows, shape.kv_heads), (rows, shape.heads)]
        tensors = [torch.randn(*size, shape.head_dim, device=device).to(dtype) for size in sizes]
        self.qkv, self.grad = [x.requires_grad_() for x in tensors[:3]], tensors[3]
        exact = [x.detach().double().requires_grad_() for x in self.qkv]
        out = TorchAttention(self.elements, self.doc_ids)(exact[0], exact[1], exact[2])
        self.exact = [out.detach(), *torch.autograd.grad(out, exact, self.grad.double())]
        layout = TorchAttention(self.elements, self.doc_ids).layout
        scores = float((layout.last - layout.first + layout.own).sum())
        pass_flops = 2 * scores * shape.heads * shape.head_dim
        row_bytes = rows * shape.head_dim * tensors[0].element_size()
        q_bytes, kv_bytes = row_bytes * shape.heads, row_bytes * shape.kv_heads
        # Forward: q k v in, out out; two products. Backward: q k v out grad in, dq dk dv out; five products.
        self.cost = {
            "forward": (2 * pass_flops, 2 * q_bytes + 2 * kv_bytes),
            "backward": (5 * pass_flops, 4 * q_bytes + 4 * kv_bytes),
        }

    def measure(self, name: str, attend: Callable[..., Tensor], ceilings: Ceilings) -> list[dict[str, Any]]:
        """Return the rows of the table for forward and backward."""
        device = self.grad.device
        out = attend(*self.qkv)
        grads = torch.autograd.grad(out, self.qkv, self.grad, retain_graph=True)
        errors = [relative_error(x, y) for x, y in zip((out.detach(), *grads), self.exact, strict=True)]
        with torch.no_grad():
            forward = milliseconds(lambda: attend(*self.qkv), device)
        backward = milliseconds(lambda: torch.autograd.grad(out, self.qkv, self.grad, retain_graph=True), device)
        rows = []
        for kind, ms, error in (("forward", forward, errors[0]), ("backward", backward, max(errors[1:]))):
            floor = ceilings.floor(*self.cost[kind])
            rows.append({"shape": self.shape.name, "what": f"attention {kind}", "how": name, "ms": ms,
                         "floor_ms": floor, "over_floor": ms / floor, "error": error})  # fmt: skip
        return rows


def sdpa_with_dense_mask(elements: Elements, doc_ids: Tensor) -> Callable[..., Tensor]:
    mask = dense_mask(elements, doc_ids)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (expand_kv(x, q.shape[1]).transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)

    return attend


def flex_with_block_mask(elements: Elements) -> Callable[..., Tensor]:
    """Prepare flex_attention in depth-major order, where its blocks are emptiest."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order = elements.argsort("depth")
    back = order.argsort()
    anchor, depth = elements.anchor[order], elements.depth[order]
    n = len(elements)

    def rule(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(anchor[q], depth[q], anchor[k], depth[k])

    blocks = create_block_mask(rule, None, None, n, n, device=anchor.device, _compile=True)
    compiled = torch.compile(flex_attention)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x[order].transpose(0, 1)[None] for x in (q, k, v))
        return compiled(q, k, v, block_mask=blocks, enable_gqa=True)[0].transpose(0, 1)[back]

    return attend


def attention_rows(shape: Shape, device: torch.device, dtype: torch.dtype, ceilings: Ceilings) -> list[dict[str, Any]]:
    case = AttentionCase(shape, device, dtype)
    elements, doc_ids = case.elements, case.doc_ids
    ways: dict[str, Callable[[], Callable[..., Tensor]]] = {
        "triton": lambda: TritonAttention(elements, doc_ids),
        "triton deterministic": lambda: TritonAttention(elements, doc_ids, deterministic=True),
        "torch backend": lambda: TorchAttention(elements, doc_ids),
    }
    if len(elements) ** 2 * case.grad.element_size() <= DENSE_LIMIT:
        ways["SDPA, dense mask"] = lambda: sdpa_with_dense_mask(elements, doc_ids)
    if device.type == "cuda":
        ways["flex, block mask"] = lambda: flex_with_block_mask(elements)
    rows = []
    for name, make in ways.items():
        try:
            rows += case.measure(name, make(), ceilings)
        except torch.OutOfMemoryError:
            rows.append({"shape": shape.name, "what": "attention", "how": name, "ms": None, "error": None})
    return rows


def loss_rows(shape: Shape, device: torch.device, dtype: torch.dtype, ceilings: Ceilings) -> list[dict[str, Any]]:
    """Measure one chunk of the distillation loss with its gradient; four rows share a target slot, as in training."""
    rows = LOSS_ROWS if device.type == "cuda" else 8
    draft = torch.randn(rows, shape.draft_vocab, device=device).mul_(3).to(dtype)
    target = torch.randn(rows // 4, shape.draft_vocab, device=device).mul_(3).to(dtype)
    row_of, weight = torch.arange(rows, device=device) // 4, torch.ones(rows, device=device)
    _, _, exact = chunk_loss(draft.double(), target.double(), row_of, weight.double(), "kl", True)
    assert exact is not None
    # Read twice, written once.
    num_bytes = (3 * draft.numel() + 2 * target.numel()) * draft.element_size()
    floor = ceilings.floor(0, num_bytes)
    results = []
    for name, loss_of in {"triton": chunk_loss_triton, "torch": chunk_loss}.items():

        def work(x: Tensor, loss_of: Callable[..., Any] = loss_of) -> Tensor:
            return loss_of(x, target, row_of, weight, "kl", True)[2]

        error = relative_error(work(draft.clone()), exact)
        scratch = draft.clone()
        ms = milliseconds(partial(work, scratch), device)
        results.append({"shape": shape.name, "what": "distillation chunk", "how": name, "ms": ms,
                        "floor_ms": floor, "over_floor": ms / floor, "error": error})  # fmt: skip
    return results


def tune(shape: Shape, device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Return times of other block sizes, fastest first: forward alone, then all backward kernels."""
    case = AttentionCase(shape, device, dtype)
    found = []
    tiles = list(itertools.product((64, 128), (32, 64, 128), (4, 8)))

    def time_it(what: str, blocks: Blocks) -> None:
        try:
            attend = TritonAttention(case.elements, case.doc_ids, blocks=blocks)
            rows = {row["what"]: row["ms"] for row in case.measure("", attend, Ceilings(1, 1))}
        except Exception as error:  # too much shared memory, too many registers: a tile that does not exist here
            print(f"  {what} {blocks}: {type(error).__name__}")
            return
        found.append({"shape": shape.name, "what": what, "blocks": str(blocks), "ms": rows[f"attention {what}"]})

    for tile in tiles:
        for stages in (2, 3):
            time_it("forward", Blocks(forward=tile, stages=stages))
            time_it("backward", Blocks(grad_query=tile, stages=stages))
            for splits in (2, 4, 8):
                time_it("backward", Blocks(grad_context=tile, stages=stages, splits=splits))
    return sorted(found, key=lambda row: (row["what"], row["ms"]))


def run(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not runs_on(device):
        raise InputError("the kernels need a CUDA device; TRITON_INTERPRET=1 with --toy checks this script without one")
    if device.type == "cpu" and not args.toy:
        raise InputError("under the interpreter only --toy ends in reasonable time")
    # The interpreter has no bfloat16 arithmetic.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    chip = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, interpreter: times mean nothing"
    import triton

    ceilings = measure_ceilings(device, dtype)
    print(f"{chip}; torch {torch.__version__}, triton {triton.__version__}, {dtype}")
    print(f"measured ceilings: {ceilings.bandwidth / 1e9:.0f} GB/s, {ceilings.flops / 1e12:.1f} TFLOP/s")
    print(f"{'shape':16}{'what':20}{'how':22}{'ms':>10}{'floor ms':>10}{'x floor':>9}{'error':>10}")
    results = []
    for shape in TOY if args.toy else SHAPES:
        if args.slots:
            shape = Shape(**{**vars(shape), "slots": args.slots})
        rows = attention_rows(shape, device, dtype, ceilings) + loss_rows(shape, device, dtype, ceilings)
        for row in rows:
            if row["ms"] is None:
                print(f"{row['shape']:16}{row['what']:20}{row['how']:22}{'out of memory':>20}")
                continue
            print(
                f"{row['shape']:16}{row['what']:20}{row['how']:22}{row['ms']:10.3f}{row['floor_ms']:10.3f}"
                f"{row['over_floor']:9.2f}{row['error']:10.1e}",
                flush=True,
            )
        results += rows
        if args.tune:
            for row in tune(shape, device, dtype)[:10]:
                print(f"  {row['what']:10}{row['ms']:10.3f} ms  {row['blocks']}")
                results.append(row)
    if args.json:
        args.json.write_text(json.dumps({"chip": chip, "ceilings": vars(ceilings), "rows": results}, indent=2) + "\n")
