"""Write report.html: the table, the pictures and answers coloured by step, in one file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import geometric_mean
from string import Template

from peagle_core.atomic import new_file
from tools.bench.serve.answers import answers_section
from tools.bench.serve.contenders import NONE, PEAGLE, label
from tools.bench.serve.metrics import Row
from tools.bench.serve.results import Results, best
from tools.bench.serve.table import drafting

CAPTIONS = {
    "speed": ("Speed", "Tokens per second over no speculation, under the same load."),
    "acceptance": ("Acceptance", "How far the target agrees: share of steps that accept a draft up to each position."),
    "concurrency": ("Load", "Tokens per second of all requests together, over the number of requests at a time."),
}  # fmt: skip


def write_page(path: Path, results: Results, pictures: Mapping[str, Path]) -> None:
    """Write the page of the results.

    pictures: .svg files by name, put into the page.
    """
    template = Template(files("tools.bench.serve").joinpath("page.html").read_text(encoding="utf-8"))
    simulated = results.simulated
    text = template.substitute(
        title="Speculative decoding: " + ", ".join(dict.fromkeys(_short(name) for name in results.labels)),
        workload=escape(results.workload),
        machine=escape(", ".join(_machine(results))),
        warning="" if simulated is None else (
            f'<p class="warn">Nothing was verified: every drafting server was made to accept {simulated} tokens a step '
            "(simulated). The texts mean nothing, the times do.</p>"
        ),
        cards=_cards(results),
        figures="".join(_figure(name, picture) for name, picture in pictures.items()),
        table=_table(results),
        categories=_categories(results),
        samples=answers_section(results.samples),
        versions=escape(", ".join(f"{name} {version}" for name, version in results.versions.items())),
        servers=_servers(results),
    )  # fmt: skip
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _short(name: str) -> str:
    return name.split(" K=")[0]


def _machine(results: Results) -> list[str]:
    machine = results.machine
    return [str(machine["gpu"] or machine["cpu"]), f"{machine['cores']} CPU cores", str(machine["system"])]


def _cards(results: Results) -> str:
    """Return one card for each concurrency: PEAGLE at its best K, the geometric mean over the data sets."""
    found = best(results.rows)
    cards = []
    for concurrency in sorted({entry["concurrency"] for entry in found}):
        entries = [entry for entry in found if entry["concurrency"] == concurrency and PEAGLE in entry]
        speed_ups = [entry[PEAGLE]["speed_up"] for entry in entries]
        if not entries or None in speed_ups:
            continue
        text = [f"PEAGLE's speed-up over no speculation, {concurrency} at a time"]
        if all("ratio" in entry for entry in entries):
            text.append(f"{geometric_mean([entry['ratio'] for entry in entries]):.2f}x EAGLE3's, each at its best K")
        accept = sum(entry[PEAGLE]["accept_length"] for entry in entries) / len(entries)
        text.append(f"{accept:.2f} tokens a step at K={', '.join(sorted({str(e[PEAGLE]['k']) for e in entries}))}")
        cards.append(
            f'<div class="card"><b>{geometric_mean(speed_ups):.2f}x</b>{escape(text[0])}'
            f'<div class="soft">{"<br>".join(map(escape, text[1:]))}</div></div>'
        )
    return "".join(cards)


def _figure(name: str, picture: Path) -> str:
    title, caption = CAPTIONS[name]
    data = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<h2>{title}</h2><p class="soft">{caption}</p>'
        f'<figure><img alt="{title}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _table(results: Results) -> str:
    head = (
        "",
        "tok/s",
        "speed-up",
        "TTFT ms",
        "p99",
        "ITL ms",
        "p99",
        "acceptance length",
        "passes/step",
        "equal",
        "memory GiB",
        "drafting ms",
    )
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    top = max((row.speed_up or 0 for row in results.rows), default=1) or 1
    for (dataset, concurrency), rows in results.by_load.items():
        text = f"{dataset}, {concurrency} at a time, {rows[0].requests} requests"
        lines.append(f'<tr class="load"><td colspan="{len(head)}">{escape(text)}</td></tr>')
        for row in rows:
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in _cells(row, top)) + "</tr>")
    for sentence in results.beside_the_paper:
        lines.append(f'<tr><td colspan="{len(head)}" style="text-align:left">{escape(sentence)}</td></tr>')
    return "".join(lines)


def _cells(row: Row, top: float) -> list[str]:
    name = escape(label(row.algorithm, row.k)) + (f" <i>(simulated {row.simulated})</i>" if row.simulated else "")
    speed_up = "-"
    if row.speed_up is not None:
        bar = f'<span class="bar {row.algorithm}" style="width:{60 * row.speed_up / top:.0f}px"></span>'
        speed_up = f"{bar}{row.speed_up:.2f}"
    memory = row.gpu_mib or row.memory_mib
    equal = "-"
    if row.outputs_equal is not None:
        equal = f'<span class="{"low" if row.outputs_equal < 1 else ""}">{row.outputs_equal:.0%}</span>'
    return [
        f'<span class="dot {escape(row.algorithm)}"></span>{name}',
        f"{row.tok_per_s:.1f}",
        speed_up,
        f"{row.ttft_ms:.0f}",
        f"{row.ttft_p99_ms:.0f}",
        _number(row.itl_ms, 1),
        _number(row.itl_p99_ms, 1),
        f"{row.accept_length:.2f}",
        _number(row.drafter_passes_per_step, 2),
        equal,
        _number(memory / 1024 if memory else None, 2),
        drafting(row),
    ]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _categories(results: Results) -> str:
    """Return acceptance length by category, at the lowest concurrency.

    Nothing where every data set is one category.
    """
    lowest = min(row.concurrency for row in results.rows)
    rows = [row for row in results.rows if row.concurrency == lowest and row.algorithm != NONE]
    if all(len(row.categories) == 1 for row in rows):
        return ""
    by_label: dict[str, dict[str, float]] = {}
    for row in rows:
        part = by_label.setdefault(label(row.algorithm, row.k), {})
        part |= {
            row.dataset if name == row.dataset else f"{row.dataset}: {name}": of.accept_length
            for name, of in row.categories.items()
        }
    names = list(dict.fromkeys(name for part in by_label.values() for name in part))
    top = max(value for part in by_label.values() for value in part.values())
    lines = ["<tr><th></th>" + "".join(f"<th>{escape(name)}</th>" for name in by_label) + "</tr>"]
    for name in names:
        cells = []
        for part in by_label.values():
            value = part.get(name)
            strength = 0 if value is None or top <= 1 else (value - 1) / (top - 1)
            cells.append(f'<td style="background:rgba(69,168,98,{0.6 * strength:.2f})">{_number(value, 2)}</td>')
        lines.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    return (
        '<h2>Acceptance by category</h2><p class="soft">Tokens per step, '
        f'{lowest} at a time.</p><div class="scroll"><table>{"".join(lines)}</table></div>'
    )


def _servers(results: Results) -> str:
    lines = ["<tr><th>round</th><th>server</th><th>dtype</th><th style='text-align:left'>started with</th></tr>"]
    for server in results.servers:
        arguments = escape(" ".join(server["arguments"])) or "-"
        lines.append(
            f"<tr><td>{server['round']}</td><td>{escape(server['label'])}</td><td>{escape(str(server['dtype']))}</td>"
            f'<td style="text-align:left;white-space:normal"><pre>{arguments}</pre></td></tr>'
        )
    return "".join(lines)
