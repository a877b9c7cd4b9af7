"""Write and print what the demo measured: report.json, report.png and a table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from peagle_core.atomic import replace_file

PACKAGES = ("peagle", "sglang", "torch", "transformers")


def write_report(directory: Path, runs: list[dict], workload: str) -> None:
    report = {
        "runs": runs,
        "best": best(runs),
        "workload": workload,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    replace_file(directory / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    plot(directory / "report.png", runs, f"{workload}\n{cpu_name()}, CPU reference platform, fp32")
    print(table(runs))
    for concurrency, of in best(runs).items():
        print(
            f"{concurrency} at a time: PEAGLE at its best K={of['PEAGLE']['k']} is {of['ratio']:.2f} times as fast as "
            f"EAGLE3 at its best K={of['EAGLE3']['k']}"
        )


def best(runs: list[dict]) -> dict[str, dict]:
    """By concurrency: the K at which each algorithm is fastest, and PEAGLE's speed-up over EAGLE3's there."""
    found: dict[str, dict] = {}
    for concurrency in sorted({run["concurrency"] for run in runs}):
        fastest = {}
        for algorithm in ("EAGLE3", "PEAGLE"):
            own = [run for run in runs if (run["algorithm"], run["concurrency"]) == (algorithm, concurrency)]
            run = max(own, key=lambda run: run["speed_up"])
            fastest[algorithm] = {key: run[key] for key in ("k", "speed_up", "tok_per_s", "accept_length")}
        ratio = fastest["PEAGLE"]["speed_up"] / fastest["EAGLE3"]["speed_up"]
        found[str(concurrency)] = {**fastest, "ratio": ratio}
    return found


def cpu_name() -> str:
    """The processor's model name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def label(run: dict) -> str:
    return "no speculation" if run["algorithm"] == "none" else f"{run['algorithm']} K={run['k']}"


def table(runs: list[dict]) -> str:
    """One line a run, a block a round; speed-up is against the run without speculation in the same round."""
    lines = [
        f"{'':16} {'at a time':>9} {'tok/s':>8} {'speed-up':>8} {'accept length':>13} {'passes/step':>11} {'equal':>6}"
    ]
    for run in runs:
        passes = run["drafter_passes_per_step"]
        lines += [""] * (run["algorithm"] == "none")
        lines.append(
            f"{label(run):16} {run['concurrency']:>9} {run['tok_per_s']:>8.1f} "
            f"{run['speed_up']:>8.2f} {run['accept_length']:>13.2f} "
            f"{'not counted' if passes is None else f'{passes:.2f}':>11} {run['outputs_equal']:>6.0%}"
        )
    return "\n".join(lines)


def plot(path: Path, runs: list[dict], caption: str) -> None:
    figure, (speed, accepted) = plt.subplots(1, 2, figsize=(14, 4.6))
    runs = [run for run in runs if run["algorithm"] != "none"]
    concurrencies = sorted({run["concurrency"] for run in runs})
    width = 0.8 / len(concurrencies)
    names = list(dict.fromkeys(map(label, runs)))
    for i, concurrency in enumerate(concurrencies):
        chosen = [run for run in runs if run["concurrency"] == concurrency]
        places = [names.index(label(run)) + (i - (len(concurrencies) - 1) / 2) * width for run in chosen]
        bars = speed.bar(places, [run["speed_up"] for run in chosen], width, label=f"{concurrency} at a time")
        speed.bar_label(bars, fmt="%.2f", fontsize=8)
    speed.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    speed.axhline(1, color="gray", linewidth=1)
    speed.set_ylabel("tokens per second over no speculation")
    speed.legend()
    for run in runs:
        if run["concurrency"] == concurrencies[0]:
            shares = run["accept_per_position"]
            name = f"{label(run)}: {run['accept_length']:.2f} tokens per step"
            style = "--" if run["algorithm"] == "EAGLE3" else "-"
            accepted.plot(range(1, len(shares) + 1), shares, style, marker="o", label=name)
    accepted.set_ylim(0, 1)
    accepted.set_xlabel("draft position")
    accepted.set_ylabel("share of steps accepted up to here")
    accepted.legend()
    figure.suptitle(caption, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
