"""Write docs/ablations.md and its plot from the record alone: no number and no verdict is typed by hand.

python -m tools.ablations.document docs        # all pages again from their records, after a change of this file
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.ablations.cost import CONTEXT
from tools.ablations.record import Record, Row, read_record, write_record
from tools.ablations.statistics import THRESHOLD, Difference, differences, promises, seed_noise, verdict
from tools.ablations.studies import STUDIES, Study


def write_document(folder: Path, record: Record, study: Study) -> Path:
    """Write the record, its page and its plot, .json, .md and .png, to a folder; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / f"{study.page}.json", record)
    plot(folder / f"{study.page}.png", record.rows)
    path = folder / f"{study.page}.md"
    path.write_text(page(record, study))
    return path


def page(record: Record, study: Study) -> str:
    """Return the Markdown of a record."""
    found = differences(record, study.contrasts)
    parts = [_introduction(record, study, found), *record.notes, _promises(found)]
    parts += [_section(title, [d for d in found if d.contrast.section == title]) for title in _sections(found)]
    return "\n\n".join([*parts, _all_rows(record)]) + "\n"


def _sections(found: list[Difference]) -> list[str]:
    return list(dict.fromkeys(d.contrast.section for d in found))


def _introduction(record: Record, study: Study, found: list[Difference]) -> str:
    rows, drafts = record.rows, record.num_draft_tokens
    runs = sum(len(row.accept_lengths) for row in rows)
    seconds = sum(row.cpu_seconds * len(row.accept_lengths) for row in rows)
    return (
        "# Ablations\n\n"
        f"`python -m tools.ablations` wrote this page from [{study.page}.json]({study.page}.json), the record of its "
        f"runs: {record.date}, {record.machine}, {runs} runs of {len(rows)} configurations (`tools/ablations`), seeds "
        f"{', '.join(map(str, record.seeds))}, {seconds / 60:.0f} CPU minutes.\n\n"
        f"{study.about}\n\n"
        f"Every run takes {_range(row.steps for row in rows)} steps of {_range(row.step_tokens for row in rows)} "
        f"tokens, with {_range(row.optimizer for row in rows)} at a peak learning rate of "
        f"{_range(row.lr for row in rows)}.\n\n"
        f"Acceptance length: tokens per target pass, bonus included, of {study.loop} at K = {drafts} "
        f"({drafts + 1} at most) on {_range(row.prompts for row in rows)} held-out prompts, "
        f"{_range(row.new_tokens for row in rows)} greedy tokens. Its standard error over prompts is up to "
        f"{max(row.prompt_error for row in rows):.3f}; but all rows draft for the same prompts, and in a "
        f"difference it is up to {max((d.prompt_error for d in found), default=0):.3f} (paired by prompt). The "
        f"standard deviation over seeds, pooled over all rows, is {seed_noise(record):.3f}. The error of a change "
        f"below joins both as the root of their squares, and a change within {THRESHOLD:g} errors is called noise "
        "(so about one in twenty differences that are not there would be called one).\n\n"
        f"![acceptance length of every configuration]({study.page}.png)"
    )


def _range(values: Iterable[Any]) -> str:
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _promises(found: list[Difference]) -> str:
    lines = [f"| {promise} | {'yes' if kept else 'NO'} |" for promise, kept in promises(found).items()]
    return "\n".join(
        ["## What was expected", "", "| on this target, at equal data and steps | measured |", "| --- | --- |", *lines]
    )


def _section(title: str, found: list[Difference]) -> str:
    lines = [
        f"## {title}",
        "",
        "| | reference | acceptance length | change | the paper's acceptance length | the paper's change | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for d in found:
        c = d.contrast
        published = (
            "; ".join(f"{p.benchmark} {p.reference:.2f} -> {p.accept_length:.2f}" for p in c.published) or "none"
        )
        changes = "; ".join(f"{p.percent:+.1f}%" for p in c.published) or "none"
        lines.append(
            f"| {c.text} (`{c.row}`) | `{c.reference}` | {d.reference_mean:.3f} -> {d.mean:.3f} | "
            f"{d.change:+.3f} +- {d.error:.3f} ({d.percent:+.1f}%) | {published} | {changes} | {verdict(d)} |"
        )
    return "\n".join(lines)


def _all_rows(record: Record) -> str:
    rows, has_cost = record.rows, any(row.draft_ms is not None for row in record.rows)
    lines = ["## All configurations", ""]
    if has_cost:
        lines += [
            f"Drafting: milliseconds that the {record.num_draft_tokens} drafts of a step take one request in the "
            f"reference loop (PyTorch, one thread, {CONTEXT} tokens before; medians of rounds in which all "
            "configurations took turns). A server's layers and graphs make less of all of them.",
            "",
        ]
    titles = [
        "configuration", "acceptance length, mean over seeds", "standard deviation over seeds",
        "standard error over prompts", "seeds", "prompts", "tokens", "CPU seconds of a run",
        *["drafting, ms"] * has_cost,
    ]  # fmt: skip
    lines += [_line(titles), _line(["---"] * len(titles))]
    for row in rows:
        deviation = "-" if row.deviation is None else f"{row.deviation:.3f}"
        cost = "-" if row.draft_ms is None else f"{row.draft_ms:.1f}"
        lines.append(
            _line(
                [
                    f"`{row.name}`", f"{row.mean:.3f}", deviation, f"{row.prompt_error:.3f}",
                    str(len(row.accept_lengths)), str(row.prompts), str(row.new_tokens), f"{row.cpu_seconds:.0f}",
                    *[cost] * has_cost,
                ]
            )
        )  # fmt: skip
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(path: Path, rows: list[Row]) -> None:
    """Draw every seed as a dot and the mean as a bar."""
    figure, axes = plt.subplots(figsize=(8, 1 + 0.32 * len(rows)))
    upwards = rows[::-1]
    for place, row in enumerate(upwards):
        axes.barh(place, row.mean, color="tab:blue", alpha=0.35)
        axes.plot(row.accept_lengths, [place] * len(row.accept_lengths), "o", color="tab:blue", markersize=4)
        axes.annotate(f" {row.mean:.2f}", (max(row.accept_lengths), place), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.name for row in upwards], fontsize=8)
    axes.set_xlim(left=1)
    axes.set_xlabel("acceptance length (bars: mean, dots: seeds)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for study in STUDIES.values():
        write_document(folder, read_record(folder / f"{study.page}.json"), study)
