"""Sum up prepared data: counts, lengths of documents and answers, coverage of smaller draft vocabularies."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trainer.data.documents import ReadReport, left_out
from trainer.data.shards import Shard
from trainer.data.vocabulary import Essential, coverage

PERCENTILES = (1, 10, 50, 90, 99)
BAR = 40


class Totals:
    """Adds up shards. document_lengths, answer_lengths: tokens of every document and every generated run."""

    def __init__(self, vocab_size: int) -> None:
        self.token_counts = torch.zeros(vocab_size, dtype=torch.int64)
        self.generated_counts = torch.zeros(vocab_size, dtype=torch.int64)
        self._documents: list[Tensor] = []
        self._answers: list[Tensor] = []

    def add(self, shard: Shard) -> None:
        ids, mask = shard.tensors()
        vocab = len(self.token_counts)
        self.token_counts += torch.bincount(ids, minlength=vocab)
        self.generated_counts += torch.bincount(ids[mask], minlength=vocab)
        self._documents.append(shard.offsets.diff())
        self._answers.append(answer_lengths(mask, shard.offsets))

    @property
    def document_lengths(self) -> Tensor:
        return torch.cat(self._documents)

    @property
    def answer_lengths(self) -> Tensor:
        return torch.cat(self._answers)


def answer_lengths(mask: Tensor, offsets: Tensor) -> Tensor:
    """Return int64[answers]: the lengths of runs of True in mask bool[n], each inside one document."""
    if not len(mask):
        return torch.zeros(0, dtype=torch.int64)
    begins = mask.clone()
    begins[1:] &= ~mask[:-1]
    starts = offsets[:-1]
    begins[starts] = mask[starts]
    return torch.bincount(begins.cumsum(0)[mask] - 1)


def summarise(totals: Totals, report: ReadReport, sizes: Iterable[int], essential: Essential) -> dict[str, Any]:
    """Return the summary as plain values.

    report: the records, and what was left out of them; sizes: of draft vocabularies.
    """
    generated = totals.generated_counts
    return {
        "records": report.records,
        "cut": report.cut,
        "useless": report.useless,
        "reasoning_lost": report.reasoning_lost,
        "unprompted": report.unprompted,
        "skipped": report.skipped,
        "documents": len(totals.document_lengths),
        "tokens": int(totals.token_counts.sum()),
        "generated_tokens": int(generated.sum()),
        "generated_ids": int((generated > 0).sum()),
        "vocabulary": len(generated),
        "coverage": {str(size): share for size, share in coverage(generated, sizes, essential).items()},
        "document_lengths": _distribution(totals.document_lengths),
        "answer_lengths": _distribution(totals.answer_lengths),
    }


def _distribution(lengths: Tensor) -> dict[str, Any]:
    """Return percentiles, and counts by powers of two: bins[k] counts lengths from 2^k to 2^(k+1) - 1."""
    ordered = lengths.sort().values
    ranks = {f"p{p}": int(ordered[min(len(ordered) - 1, p * len(ordered) // 100)]) for p in PERCENTILES}
    powers = torch.tensor([2**k for k in range(1, int(ordered[-1]).bit_length())], dtype=torch.int64)
    bins = torch.bincount(torch.bucketize(ordered, powers, right=True))
    return {"mean": float(lengths.double().mean()), **ranks, "max": int(ordered[-1]), "bins": bins.tolist()}


def print_summary(summary: dict[str, Any]) -> None:
    print(
        f"{summary['records']} records -> {summary['documents']} documents, {summary['tokens']} tokens, "
        f"{summary['generated_tokens']} of them generated; {summary['cut']} answers cut at the maximum length, "
        f"{summary['useless']} documents left out (nothing supervised)"
    )
    report = ReadReport(**{key: summary[key] for key in ("reasoning_lost", "unprompted", "skipped")})
    for line in left_out(report):
        print(line)
    for title, key in (("tokens of a document", "document_lengths"), ("tokens of an answer", "answer_lengths")):
        values = summary[key]
        print(f"\n{title}: mean {values['mean']:.0f}, median {values['p50']}, 99% {values['p99']}, max {values['max']}")
        most = max(values["bins"])
        for power, count in enumerate(values["bins"]):
            if any(values["bins"][: power + 1]):
                bar = "#" * -(-count * BAR // most)
                print(f"  {2**power:>7} .. {2 ** (power + 1) - 1:<7} {count:>10}  {bar}".rstrip())
    print(f"\ngenerated tokens covered by a smaller draft vocabulary ({summary['generated_ids']} ids are generated):")
    for size, share in summary["coverage"].items():
        print(f"  {size:>7} {100 * share:6.2f} %")


def draw_histograms(totals: Totals) -> bytes:
    """Return a PNG with the lengths of documents and of answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    titles = ("document", totals.document_lengths), ("answer", totals.answer_lengths)
    for axes, (title, lengths) in zip(figure.subplots(1, 2), titles, strict=True):
        axes.hist(lengths.numpy(), bins=50)
        axes.set_xlabel(f"tokens of a{'n' if title == 'answer' else ''} {title}")
        axes.set_ylabel(f"{title}s")
    out = io.BytesIO()
    canvas.print_png(out)
    return out.getvalue()
