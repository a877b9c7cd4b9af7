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
    partial = directory / "report.json.partial"
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(directory / "report.json")
    plot(directory / "report.png", runs, f"{workload}\n{cpu_name()}, CPU reference platform, fp32")
    print(table(runs))
    for concurrency, of in best(runs).items():
        print(
            f"{concurrency} at a time: PEAGLE's best, K={of['PEAGLE']['k']}, makes {of['ratio']:.2f} times the tokens "
            f"of EAGLE3's best, K={of['EAGLE3']['k']}"
        )


def best(runs: list[dict]) -> dict[str, dict]:
    """By concurrency: the K at which each algorithm is fastest, and PEAGLE's tok/s over EAGLE3's there."""
    found: dict[str, dict] = {}
    for concurrency in sorted({run["concurrency"] for run in runs}):
        fastest = {}
        for algorithm in ("EAGLE3", "PEAGLE"):
            own = [run for run in runs if (run["algorithm"], run["concurrency"]) == (algorithm, concurrency)]
            run = max(own, key=lambda run: run["tok_per_s"])
            fastest[algorithm] = {key: run[key] for key in ("k", "tok_per_s", "accept_length")}
        ratio = fastest["PEAGLE"]["tok_per_s"] / fastest["EAGLE3"]["tok_per_s"]
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
    return f"{run['algorithm']} K={run['k']}" if run["k"] else "no speculation"


def table(runs: list[dict]) -> str:
    """One line a run; speed-up is against the run without speculation at the same concurrency."""
    plain = {run["concurrency"]: run["tok_per_s"] for run in runs if not run["k"]}
    lines = [
        f"{'':16} {'at a time':>9} {'tok/s':>8} {'speed-up':>8} {'accept length':>13} {'passes/step':>11} {'equal':>6}"
    ]
    for run in runs:
        passes = run["drafter_passes_per_step"]
        lines.append(
            f"{label(run):16} {run['concurrency']:>9} {run['tok_per_s']:>8.1f} "
            f"{run['tok_per_s'] / plain[run['concurrency']]:>8.2f} {run['accept_length']:>13.2f} "
            f"{'not counted' if passes is None else f'{passes:.2f}':>11} {run['outputs_equal']:>6.0%}"
        )
    return "\n".join(lines)


def plot(path: Path, runs: list[dict], caption: str) -> None:
    figure, (speed, accepted) = plt.subplots(1, 2, figsize=(14, 4.6))
    concurrencies = sorted({run["concurrency"] for run in runs})
    width = 0.8 / len(concurrencies)
    names = list(dict.fromkeys(map(label, runs)))
    for i, concurrency in enumerate(concurrencies):
        chosen = [run for run in runs if run["concurrency"] == concurrency]
        places = [names.index(label(run)) + (i - (len(concurrencies) - 1) / 2) * width for run in chosen]
        bars = speed.bar(places, [run["tok_per_s"] for run in chosen], width, label=f"{concurrency} at a time")
        speed.bar_label(bars, fmt="%.0f", fontsize=8)
    speed.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    speed.set_ylabel("output tokens per second")
    speed.legend()
    for run in runs:
        if run["k"] and run["concurrency"] == concurrencies[0]:
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
