"""docs/ablations.md and its plot, written from the results alone: no number and no verdict is typed by hand."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.ablations.contrasts import CONTRASTS, Contrast
from tools.ablations.statistics import THRESHOLD, Difference, Row, differences, promises, rows_of, seed_noise, verdict
from tools.ablations.trial import Result
from tools.demo.report import cpu_name

NAME = "ablations"


def write_document(folder: Path, results: list[Result], contrasts: tuple[Contrast, ...] = CONTRASTS) -> Path:
    """Write folder/ablations.md and folder/ablations.png; returns the first. results: at least one."""
    rows = rows_of(results)
    found = differences(contrasts, rows)
    parts = [_introduction(results, rows, found), _promises(found)]
    parts += [_section(title, [d for d in found if d.contrast.section == title]) for title in _sections(found)]
    parts += [_all_rows(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    plot(folder / f"{NAME}.png", rows)
    path = folder / f"{NAME}.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def _sections(found: list[Difference]) -> list[str]:
    return list(dict.fromkeys(d.contrast.section for d in found))


def _introduction(results: list[Result], rows: dict[str, Row], found: list[Difference]) -> str:
    first = results[0]
    total = sum(result.cpu_seconds for result in results)
    seeds = sorted({result.seed for result in results})
    drafts = first.settings["eval"]["num_draft_tokens"][0]
    return (
        "# Ablations\n\n"
        f"`python -m tools.ablations` wrote this page: {datetime.date.today()}, {cpu_name()}, {os.cpu_count()} cores, "
        f"PyTorch {importlib.metadata.version('torch')}, {len(results)} runs of {len(rows)} configurations "
        f"(`trainer/configs/ablations/`), seeds {', '.join(map(str, seeds))}, {total / 60:.0f} CPU minutes.\n\n"
        "Target and data are the demo's (`make demo`): a Llama of 8 layers and width 128, trained on the character "
        "tables of Python's standard library, and its own greedy text. The paper's are large models on HumanEval and "
        "MT-Bench: signs can be compared, sizes hardly.\n\n"
        f"Every run takes {_range(r.steps for r in results)} steps of {_range(map(_tokens_of_a_step, results))} "
        f"tokens, with {_range(r.settings['optim']['optimizer'] for r in results)} at a peak learning rate of "
        f"{_range(r.settings['optim']['lr'] for r in results)}: as many steps and tokens as the demo's own heads get, "
        "and short enough for all of it to take about an hour on two cores. It is one pass over the demo's "
        "generations, or two where documents are cut at half their length. Nothing was tuned for a row but the "
        "learning rate of the two that say so.\n\n"
        f"Acceptance length: tokens per target pass, bonus included, of the reference loop at K = {drafts} "
        f"({drafts + 1} at most) on {_range(len(r.per_prompt) for r in results)} held-out prompts, "
        f"{_range(r.new_tokens for r in results)} greedy tokens. Its standard error over prompts is up to "
        f"{max(row.prompt_error for row in rows.values()):.3f}; but all rows draft for the same prompts, and in a "
        f"difference it is up to {max((d.prompt_error for d in found), default=0):.3f} (paired by prompt). The "
        f"standard deviation over seeds, pooled over all rows, is {seed_noise(rows):.3f}. The error of a change below "
        f"joins both as the root of their squares, and a change within {THRESHOLD:g} errors is called noise "
        "(so about one in twenty differences that are not there would be called one).\n\n"
        f"![acceptance length of every configuration]({NAME}.png)"
    )


def _tokens_of_a_step(result: Result) -> int:
    return result.settings["data"]["row_length"] * result.settings["optim"]["rows_per_step"]


def _range(values) -> str:
    values = sorted(set(values))
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _promises(found: list[Difference]) -> str:
    lines = [f"| {promise} | {'yes' if held else 'NO'} |" for promise, held in promises(found).items()]
    return "\n".join(
        ["## What was to hold", "", "| on this target, at equal data and steps | measured |", "| --- | --- |", *lines]
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


def _all_rows(rows: dict[str, Row]) -> str:
    lines = [
        "## All configurations",
        "",
        "| configuration | acceptance length, mean over seeds | standard deviation over seeds | standard error over "
        "prompts | seeds | prompts | tokens | CPU seconds of a run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows.values():
        deviation = "-" if row.deviation is None else f"{row.deviation:.3f}"
        lines.append(
            f"| `{row.name}` | {row.mean:.3f} | {deviation} | {row.prompt_error:.3f} | {len(row.accept_lengths)} | "
            f"{len(row.influence)} | {row.new_tokens} | {row.cpu_seconds:.0f} |"
        )
    return "\n".join(lines)


def plot(path: Path, rows: dict[str, Row]) -> None:
    """Every seed a dot, the mean a bar."""
    figure, axes = plt.subplots(figsize=(8, 1 + 0.32 * len(rows)))
    names = list(rows)[::-1]
    for place, name in enumerate(names):
        row = rows[name]
        axes.barh(place, row.mean, color="tab:blue", alpha=0.35)
        axes.plot(row.accept_lengths, [place] * len(row.accept_lengths), "o", color="tab:blue", markersize=4)
        axes.annotate(f" {row.mean:.2f}", (max(row.accept_lengths), place), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(left=1)
    axes.set_xlabel("acceptance length (bars: mean, dots: seeds)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
