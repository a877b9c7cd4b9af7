"""Draw the three pictures: speed with ratios, acceptance by draft position, tokens per second over concurrency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peagle_core.atomic import new_file
from tools.bench.serve.contenders import EAGLE3, NONE, PEAGLE, label
from tools.bench.serve.metrics import Row
from tools.bench.serve.results import Results

INK, GRID = "#1f2733", "#dfe4ea"
LEGEND_INCHES = 1.6  # of the longest label, "no speculation", with its handle
SHADES = {NONE: ("#9aa4b2",), EAGLE3: ("#f6c28b", "#ec9b45", "#cf7516", "#9a5208"),
          PEAGLE: ("#9fc4f5", "#4f8fe6", "#1f5fc4", "#103a80")}  # fmt: skip
STYLE: Any = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa4b2",
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": GRID, "legend.frameon": False, "svg.fonttype": "path",
}  # fmt: skip


def draw(results: Results, directory: Path) -> dict[str, Path]:
    """Write speed, acceptance and concurrency, each as .png and .svg -> the .svg files by name.

    Pictures that would show nothing are left out: acceptance without a drafting server, one concurrency alone.
    """
    pictures: dict[str, Callable[[Results], Figure]] = {"speed": _speed}
    if any(row.k for row in results.rows):
        pictures["acceptance"] = _acceptance
    if len({row.concurrency for row in results.rows}) > 1:
        pictures["concurrency"] = _over_concurrency
    paths = {}
    with plt.rc_context(STYLE):
        for name, picture in pictures.items():
            figure = picture(results)
            if results.simulated is not None:
                said = f"acceptance length simulated: {results.simulated}"
                weights = f"; random weights of {results.size}'s size" if results.size else ""
                figure.suptitle(said + weights, color="#b3261e", fontsize=10)
            for suffix in ("png", "svg"):
                paths[name] = directory / f"{name}.{suffix}"
                with new_file(paths[name]) as partial:
                    figure.savefig(partial, format=suffix, dpi=160)
            plt.close(figure)
    return paths


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """Return a colour for each label: a hue for the algorithm, darker with K."""
    colors: dict[str, str] = {}
    for algorithm, shades in SHADES.items():
        ks = sorted({row.k for row in rows if row.algorithm == algorithm})
        # Few K take the middle shades.
        first = max(0, (len(shades) - len(ks)) // 2)
        colors |= {label(algorithm, k): shades[min(first + i, len(shades) - 1)] for i, k in enumerate(ks)}
    return colors


def _panels(results: Results, titles: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    lines = -(-len(titles) // 3)
    columns = -(-len(titles) // lines)
    size = (max(6.5, 4.2 * columns), height * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    panels = list(axes.flat)
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, loc="left", fontweight="bold", fontsize=10.5)
        panel.grid(axis="x", visible=False)
    return figure, panels[: len(titles)]


def _legend(figure: Figure, panel: Axes) -> None:
    """Put the panel's labels below all panels, on as few lines as the figure's width allows."""
    handles, labels = panel.get_legend_handles_labels()
    fit = max(1, int(figure.get_figwidth() / LEGEND_INCHES))
    lines = -(-len(labels) // fit)
    figure.legend(handles, labels, loc="outside lower center", ncols=-(-len(labels) // lines))


def _latest(rows: Sequence[Row]) -> dict[str, Row]:
    """Return one row for each label; no speculation takes part in every round, its first stands for all."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(label(row.algorithm, row.k), row)
    return found


def _speed(results: Results) -> Figure:
    """Draw bars of the speed-up over no speculation, a panel for each concurrency.

    Without that server: of tokens per second.
    """
    rows = results.rows
    relative = all(row.speed_up is not None for row in rows)
    colors, datasets = _colors(rows), list(dict.fromkeys(row.dataset for row in rows))
    concurrencies = sorted({row.concurrency for row in rows})
    names = [name for name in results.labels if not (relative and name == label(NONE, 0) and len(results.labels) > 1)]
    figure, panels = _panels(results, [f"{c} at a time" for c in concurrencies], 3.6)
    width = 0.84 / len(names)
    for panel, concurrency in zip(panels, concurrencies, strict=True):
        for i, name in enumerate(names):
            of = [
                _latest([r for r in rows if (r.dataset, r.concurrency) == (d, concurrency)]).get(name) for d in datasets
            ]
            places = [j + (i - (len(names) - 1) / 2) * width for j, row in enumerate(of) if row]
            values = [(row.speed_up or 0) if relative else row.tok_per_s for row in of if row]
            bars = panel.bar(places, values, width * 0.92, label=name, color=colors[name])
            panel.bar_label(bars, fmt="%.2fx" if relative else "%.0f", fontsize=7, rotation=90 if len(names) > 4 else 0,
                            padding=2)  # fmt: skip
        panel.set_xticks(range(len(datasets)), datasets)
        panel.margins(y=0.18)
        panel.tick_params(axis="x", length=0)
        if relative:
            panel.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    panels[0].set_ylabel("tokens per second,\nover no speculation" if relative else "tokens per second")
    _legend(figure, panels[0])
    return figure


def _acceptance(results: Results) -> Figure:
    """Draw lines of the share of steps that accept each draft position, a panel for each data set."""
    rows = [row for row in results.rows if row.k]
    colors, lowest = _colors(results.rows), min(row.concurrency for row in rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    figure, panels = _panels(results, datasets, 3.4)
    for panel, dataset in zip(panels, datasets, strict=True):
        chosen = _latest([row for row in rows if (row.dataset, row.concurrency) == (dataset, lowest)])
        for name in (name for name in results.labels if name in chosen):
            shares = chosen[name].accept_per_position
            style = "--" if chosen[name].algorithm == EAGLE3 else "-"
            panel.plot(
                range(1, len(shares) + 1), shares, style, marker="o", markersize=4, color=colors[name], label=name
            )
        panel.set_ylim(0, 1.02)
        panel.set_xticks(range(1, max(row.k for row in rows) + 1))
        panel.set_xlabel("draft position")
    panels[0].set_ylabel("share of steps accepted up to here")
    _legend(figure, panels[0])
    return figure


def _over_concurrency(results: Results) -> Figure:
    """Draw lines of tokens per second over concurrency, a panel for each data set."""
    rows, colors = results.rows, _colors(results.rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    ticks = sorted({row.concurrency for row in rows})
    figure, panels = _panels(results, datasets, 3.4)
    for panel, dataset in zip(panels, datasets, strict=True):
        for name in results.labels:
            own = [row for row in rows if row.dataset == dataset and label(row.algorithm, row.k) == name]
            points = [(c, fmean(row.tok_per_s for row in own if row.concurrency == c)) for c in ticks]
            style = "--" if own[0].algorithm == EAGLE3 else "-"
            panel.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=colors[name], label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel("requests at a time")
    panels[0].set_ylabel("tokens per second")
    _legend(figure, panels[0])
    return figure
