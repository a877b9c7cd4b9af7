"""Run what is not finished yet, a few processes at a time, and read what is."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from peagle_core.errors import InputError
from tools.ablations.material import Paths
from tools.ablations.trial import Result, read_result

CONFIGS = Path("trainer/configs/ablations")
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Suite:
    """directory: runs/, results/ and logs/ go there; configs: where the YAML files are."""

    directory: Path
    paths: Paths
    configs: Path = CONFIGS

    def result_file(self, name: str, seed: int) -> Path:
        return self.directory / "results" / f"{name}-seed{seed}.json"

    def log_file(self, name: str, seed: int) -> Path:
        return self.directory / "logs" / f"{name}-seed{seed}.log"

    def overrides(self, name: str, seed: int) -> list[str]:
        return [
            *self.paths.overrides(),
            f"output_dir={self.directory / 'runs' / f'{name}-seed{seed}'}",
            f"seed={seed}",
            "device=cpu",
        ]

    def finished(self, names: list[str], seeds: range) -> list[Result]:
        """The results that belong to the present configurations, target and data."""
        if not self.paths.exist():
            return []
        digest, found = self.paths.digest(), []
        for name, seed in trials(names, seeds):
            result = read_result(self.result_file(name, seed))
            says = yaml.safe_load((self.configs / f"{name}.yaml").read_text())
            if result and result.material == digest and _agree(says, result.settings):
                found.append(result)
        return found


def _agree(says: Any, settings: Any) -> bool:
    """Whether a run had all the settings that its file has now; what the file leaves out may have got a new name."""
    if isinstance(says, dict):
        return isinstance(settings, dict) and all(_agree(value, settings.get(key)) for key, value in says.items())
    return says == settings


def trials(names: list[str], seeds: range) -> list[tuple[str, int]]:
    """(name, seed) in the order they run: all names with the first seed, then with the next."""
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
    """One trial in a process of its own; None when it failed."""
    log = suite.log_file(name, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tools.ablations.trial", str(suite.configs / f"{name}.yaml")]
    command += [*suite.overrides(name, seed), "--result", str(suite.result_file(name, seed))]
    command += ["--material", suite.paths.digest()]
    environment = {**os.environ, **dict.fromkeys(THREAD_SETTINGS, "1")}
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    return read_result(suite.result_file(name, seed)) if code == 0 else None
