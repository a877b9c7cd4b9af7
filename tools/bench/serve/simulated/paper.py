"""P-EAGLE's paper (arXiv 2602.01469), Table 10: what its authors measured, to set ours beside.

vLLM, one H100, chain drafting; output tokens a second of P-EAGLE over those of EAGLE-3 ("AR") at its best K, on
HumanEval, MT-Bench and GSM-8K. Acceptance was real there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tools.bench.serve.contenders import EAGLE3, PEAGLE
from tools.bench.serve.metrics import Row

RATIOS = {  # by size, then (concurrency, K)
    "gpt-oss-20b": {
        (2, 3): (1.08, 1.08, 1.10), (2, 5): (1.26, 1.22, 1.26), (2, 7): (1.30, 1.27, 1.36),
        (4, 3): (1.02, 1.09, 1.04), (4, 5): (1.20, 1.24, 1.21), (4, 7): (1.25, 1.23, 1.27),
    },
    "qwen3-coder-30b": {
        (2, 3): (0.94, 1.02, 1.01), (2, 5): (1.11, 1.04, 1.08), (2, 7): (1.17, 1.02, 1.06),
        (4, 3): (0.92, 1.00, 0.97), (4, 5): (1.06, 1.04, 1.06), (4, 7): (1.11, 1.01, 1.04),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """PEAGLE's tokens a second over EAGLE3's at EAGLE3's best K, and at the same K.

    paper: what the table says, on its three data sets.
    """

    concurrency: int
    k: int
    best: float
    same_k: float | None
    paper: tuple[float, float, float] | None


def beside_the_paper(rows: Sequence[Row], size: str) -> list[Beside]:
    """Return the ratios of every concurrency and K that both algorithms served."""
    found = []
    for concurrency in sorted({row.concurrency for row in rows}):
        at = [row for row in rows if row.concurrency == concurrency]
        theirs = {row.k: row.tok_per_s for row in at if row.algorithm == EAGLE3}
        for row in at:
            if row.algorithm == PEAGLE and theirs:
                same = row.tok_per_s / theirs[row.k] if row.k in theirs else None
                paper = RATIOS.get(size, {}).get((concurrency, row.k))
                found.append(Beside(concurrency, row.k, row.tok_per_s / max(theirs.values()), same, paper))
    return found


def text_lines(found: Sequence[Beside]) -> list[str]:
    """Say the ratios, a line each."""
    lines = []
    for entry in found:
        same = "" if entry.same_k is None else f", {entry.same_k:.2f} at the same K"
        paper = "" if entry.paper is None else (
            "; paper, Table 10 (real acceptance): " + ", ".join(f"{x:.2f}" for x in entry.paper)
            + " on HumanEval, MT-Bench, GSM-8K"
        )  # fmt: skip
        lines.append(
            f"{entry.concurrency} at a time, PEAGLE K={entry.k}: {entry.best:.2f} of EAGLE3 at its best K{same}{paper}"
        )
    return lines
