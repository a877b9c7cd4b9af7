"""The results as files for machines (JSON, CSV) and as a table for the terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from peagle_core.atomic import new_file
from tools.bench.serve.contenders import NONE, label
from tools.bench.serve.metrics import Row
from tools.bench.serve.results import Results, best


def write_json(path: Path, results: Results) -> None:
    with new_file(path) as partial:
        partial.write_text(json.dumps(results.to_json(), indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line for each row with category `all`, then one for each of its categories where there are several."""
    with new_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [name for name in asdict(rows[0]) if name not in ("categories", "accept_per_position")]
        positions = max(row.k for row in rows)
        writer.writerow([*names, "category", *(f"accepted_{i + 1}" for i in range(positions))])
        for row in rows:
            values = asdict(row)
            writer.writerow([*(values[name] for name in names), "all", *row.accept_per_position])
            for category, part in row.categories.items() if len(row.categories) > 1 else ():
                of_part = {**dict.fromkeys(names), **asdict(part)}
                of_part |= {name: values[name] for name in names[: names.index("simulated") + 1]}
                writer.writerow([*(of_part[name] for name in names), category])


def text_table(results: Results) -> str:
    """Return one line for each server, a block for each load; then how the algorithms compare."""
    head = ("", "tok/s", "speed-up", "TTFT ms", "ITL ms", "accept length", "passes/step", "equal", "MiB", "draft ms")
    lines: list[str] = []
    for (dataset, concurrency), rows in results.by_load.items():
        lines += ["", _line((f"{dataset}, {concurrency} at a time", *head[1:])), *map(_cells, rows)]
    return "\n".join([*lines, "", *best_sentences(results.rows), *results.beside_the_paper])


def _cells(row: Row) -> str:
    counted = row.algorithm == NONE or row.drafter_passes_per_step is not None
    memory = row.gpu_mib or row.memory_mib
    return _line(
        (
            label(row.algorithm, row.k) + (f" (simulated {row.simulated})" if row.simulated else ""),
            f"{row.tok_per_s:.1f}",
            "-" if row.speed_up is None else f"{row.speed_up:.2f}",
            f"{row.ttft_ms:.0f}",
            "-" if row.itl_ms is None else f"{row.itl_ms:.1f}",
            f"{row.accept_length:.2f}",
            f"{row.drafter_passes_per_step or 0:.2f}" if counted else "not counted",
            "-" if row.outputs_equal is None else f"{row.outputs_equal:.0%}",
            "-" if memory is None else f"{memory:.0f}",
            drafting(row),
        )
    )


def drafting(row: Row) -> str:
    """Say how long a step's drafting takes beside its floor."""
    floor = row.drafter_floor_ms
    if row.drafter_ms is None:
        return "-" if floor is None else f"floor {floor:.3f}"
    return f"{row.drafter_ms:.3f}" + (f" ({row.drafter_ms / floor:.2f}x floor)" if floor else "")


def _line(cells: Sequence[str]) -> str:
    widths = (10, 9, 8, 8, 14, 12, 6, 7, 20)
    return f"{cells[0]:34}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))


def best_sentences(rows: Sequence[Row]) -> list[str]:
    """Say for every load how the two algorithms compare, each at its best K."""
    return [
        f"{entry['dataset']}, {entry['concurrency']} at a time: PEAGLE at its best K={entry['PEAGLE']['k']} is "
        f"{entry['ratio']:.2f} times as fast as EAGLE3 at its best K={entry['EAGLE3']['k']}"
        for entry in best(rows)
        if "ratio" in entry
    ]
