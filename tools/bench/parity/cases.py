"""What is served: a table of servers that differ in what decides which rows, lengths and KV slots a pass has."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError
from peagle_core.serve_command import sglang_arguments


@dataclass(frozen=True)
class Case:
    """One server. what: said in the report; head: of `models.save_models`; k: drafts per step, the first K if adaptive.

    arguments, environment: SGLang's; table: of K, served with `--speculative-adaptive`; limit: the relative
    distance of logits [V] (norm of the difference / norm of the reference) that rounding explains.
    """

    what: str
    k: int = 5
    head: str = "plain"
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    table: dict[str, Any] | None = None
    limit: float = 0.06  # bfloat16 measures 0.012 to 0.026, one wrong key in a prefix of 70 makes 0.10 to 0.53

    def command(self, models: Path, directory: Path) -> list[str]:
        """Return the server's arguments. A table of K is written into `directory`."""
        arguments = [*sglang_arguments(str(models / self.head), self.k, False), "--skip-tokenizer-init"]
        if self.table is not None:
            path = directory / "table.json"
            path.write_text(json.dumps(self.table))
            arguments += ["--speculative-adaptive", "--speculative-adaptive-config", str(path)]
        return [*arguments, *self.arguments]

    @property
    def accept_length(self) -> float:
        """Return the tokens a step that are simulated: on average half of what K allows."""
        return (self.k + 2) / 2


TABLE = {str(bs): {"candidate_steps": [k]} for bs, k in ((1, 5), (2, 3), (3, 1))}
CONFIDENT = {"confidence": 0.2, "1": {"candidate_steps": [1, 3, 5]}}
EXACT = 1e-3  # float32 on both sides
FP32 = ("--dtype", "float32", "--max-total-tokens", "4096")  # by itself SGLang takes all memory that is free
CPU = {
    "default": Case("K = 5, pages of 1", arguments=FP32, limit=EXACT),
    "adaptive": Case(
        "K = 5, 3 and 1 by load, pages of 16, chunks of 64, draft vocabulary, a correction, a head of another shape",
        head="other", arguments=(*FP32, "--page-size", "16", "--chunked-prefill-size", "64"),
        table=TABLE, limit=EXACT,
    ),
    "confidence": Case(
        "K = 5, of which 1, 3 or 5 are verified, pages of 16, draft vocabulary, a correction, a head of another shape",
        head="other", arguments=(*FP32, "--page-size", "16"), table=CONFIDENT, limit=EXACT,
    ),
    "paged": Case(
        "K = 7, pages of 16, chunks of 32, no overlap", k=7,
        arguments=(*FP32, "--page-size", "16", "--chunked-prefill-size", "32",
                   "--disable-overlap-schedule"),
        limit=EXACT,
    ),
    "retract": Case(
        "K = 3, requests that are retracted and prefilled again", k=3, arguments=FP32,
        environment={"SGLANG_TEST_RETRACT": "1"}, limit=EXACT,
    ),
}  # fmt: skip

BF16 = ("--dtype", "bfloat16", "--max-running-requests", "16", "--mem-fraction-static", "0.4")
FAST = (*BF16, "--cuda-graph-backend-prefill", "disabled", "--cuda-graph-bs-decode", "1", "2", "4", "8")
GPU = {
    "default": Case("K = 5 as SGLang serves it", arguments=(*BF16, "--cuda-graph-bs-decode", "1", "2", "4", "8")),
    "eager": Case(
        "K = 5 without graphs of the drafter: where `default` fails, this tells capture from attention",
        arguments=FAST, environment={"SGLANG_DISABLE_DRAFT_EXTEND_CUDA_GRAPH": "1"},
    ),
    "adaptive": Case(
        "K = 5, 3 and 1 by load, graphs of three widths, draft vocabulary, a correction, a head of another shape",
        head="other", arguments=FAST, table=TABLE,
    ),
    "confidence": Case(
        "K = 5, of which 1, 3 or 5 are verified, one graph for all, draft vocabulary, a correction, another shape",
        head="other", arguments=FAST, table=CONFIDENT,
    ),
    "fp8": Case(
        "K = 3, pages of 64, KV in fp8", k=3, limit=0.3,
        arguments=(*FAST, "--page-size", "64", "--kv-cache-dtype", "fp8_e4m3"),
    ),
    "stress": Case(
        "K = 5, batches beyond the largest graph, a small pool, chunks of 64, retracted requests",
        arguments=("--dtype", "bfloat16", "--max-running-requests", "16", "--cuda-graph-bs-decode", "1", "2",
                   "--max-total-tokens", "900", "--chunked-prefill-size", "64",
                   "--cuda-graph-backend-prefill", "disabled"),
        environment={"SGLANG_TEST_RETRACT": "1"},
    ),
    "triton": Case(
        "K = 5, triton attention in float32 with IEEE products", limit=2 * EXACT,
        arguments=(*FAST, "--attention-backend", "triton", "--dtype", "float32"),
        environment={"TRITON_F32_DEFAULT": "ieee"},
    ),
    "flashinfer": Case("K = 5, flashinfer", arguments=(*FAST, "--attention-backend", "flashinfer")),
}  # fmt: skip


def choose(names: list[str] | None, on_gpu: bool) -> dict[str, Case]:
    """Return the cases of these names, all that this machine serves where none is given. Raises InputError."""
    cases = GPU if on_gpu else CPU
    unknown = set(names or ()) - set(cases)
    if unknown:
        where = "a GPU" if on_gpu else "the CPU platform"
        raise InputError(f"no case {sorted(unknown)[0]!r} on {where}; there are {', '.join(cases)}")
    return {name: cases[name] for name in names or cases}
