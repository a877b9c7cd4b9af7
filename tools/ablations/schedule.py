"""Run what is not finished yet, a few processes at a time, and read what is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from peagle_core.errors import InputError
from tools.ablations.inputs import Inputs
from tools.ablations.trial import Result, read_result

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Suite:
    """Say where runs/, results/ and logs/ go (directory), what runs read (inputs), and what each configuration is.

    base: the YAML file that all share. changes: what each configuration changes of it, by its full keys. shared: what
    is changed of it for all of them.
    """

    directory: Path
    inputs: Inputs
    base: Path
    changes: dict[str, dict[str, Any]]
    shared: dict[str, Any] = field(default_factory=dict)

    def result_file(self, name: str, seed: int) -> Path:
        return self.directory / "results" / f"{name}-seed{seed}.json"

    def log_file(self, name: str, seed: int) -> Path:
        return self.directory / "logs" / f"{name}-seed{seed}.log"

    def overrides(self, name: str, seed: int) -> list[str]:
        return [
            *(f"{key}={json.dumps(value)}" for key, value in (self.shared | self.changes[name]).items()),
            *self.inputs.overrides(),
            f"output_dir={self.directory / 'runs' / f'{name}-seed{seed}'}",
            f"seed={seed}",
        ]

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings that base and changes give to a configuration."""
        settings = yaml.safe_load(self.base.read_text())
        for key, value in (self.shared | self.changes[name]).items():
            *sections, last = key.split(".")
            place = settings
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return settings

    def finished(self, names: list[str], seeds: range) -> list[Result]:
        """Return the results that belong to the present configurations, target and data."""
        if self.inputs.missing():
            return []
        digest, found = self.inputs.digest(), []
        for name, seed in trials(names, seeds):
            result = read_result(self.result_file(name, seed))
            if result and result.inputs == digest and _agree(self.settings(name), result.settings):
                found.append(result)
        return found


def _agree(wanted: Any, found: Any) -> bool:
    """Tell whether a run had all the wanted settings; others may have come, or have got a new name, since then."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_agree(value, found.get(key)) for key, value in wanted.items())
    return wanted == found


def trials(names: list[str], seeds: range) -> list[tuple[str, int]]:
    """Return (name, seed) in the order they run: all names with the first seed, then with the next."""
    return [(name, seed) for seed in seeds for name in names]


def run_all(suite: Suite, names: list[str], seeds: range, jobs: int) -> list[Result]:
    """Run every trial that is not finished, `jobs` at a time, one thread each; returns all that are finished then.

    Raises InputError naming the failed trials, after the others have run.
    """
    done = {(result.name, result.seed) for result in suite.finished(names, seeds)}
    wanted = trials(names, seeds)
    failed = []
    bar = tqdm(total=len(wanted), initial=len(done), desc="ablations", unit="run")
    pool = ThreadPoolExecutor(jobs)
    try:
        running = {pool.submit(_run, suite, *trial): trial for trial in wanted if trial not in done}
        for future in as_completed(running):
            name, seed = running[future]
            bar.update()
            result = future.result()
            if result is None:
                failed.append(f"{name} (seed {seed}, see {suite.log_file(name, seed)})")
                bar.write(f"{name}, seed {seed}: FAILED")
            else:
                bar.write(
                    f"{name}, seed {seed}: acceptance length {result.accept_length:.3f}, {result.cpu_seconds:.0f} CPU-s"
                )
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    if failed:
        raise InputError(f"{len(failed)} of {len(wanted)} runs failed: {', '.join(failed)}")
    return suite.finished(names, seeds)


def _run(suite: Suite, name: str, seed: int) -> Result | None:
    """Run one trial in a process of its own; None when it failed."""
    log = suite.log_file(name, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tools.ablations.trial", str(suite.base), *suite.overrides(name, seed)]
    command += ["--name", name, "--result", str(suite.result_file(name, seed)), "--inputs", suite.inputs.digest()]
    environment = {**os.environ, **dict.fromkeys(THREAD_SETTINGS, "1")}
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    return read_result(suite.result_file(name, seed)) if code == 0 else None
