"""The real SGLang server over HTTP, on the CPU reference platform, for tests."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools import prefork, server
from tools.server import Server, cpu_environment, free_port, launch_command

SERVE = ("--dtype", "float32", "--max-total-tokens", "4096", "--log-level", "warning", "--sleep-on-idle")


def beyond(values: Iterable[Any], *rare: Any) -> list[Any]:
    """The values of a parametrized test; `rare` ones, each a server more, are left to `make test-matrix`."""
    return [pytest.param(value, marks=pytest.mark.matrix) if value in rare else value for value in values]


@contextmanager
def serve(
    target: Path, log: Path, *arguments: str, start: server.Start = prefork.start, **extra_environment: str
) -> Iterator[Server]:
    """Start a server with `arguments` beside SERVE's; see `tools.prefork` for how."""
    environment = cpu_environment(**extra_environment)
    with server.serve(target, log, *SERVE, *arguments, environment=environment, start=start) as running:
        yield running


def generate_to_the_limit(server: Server, prompt: list[int]) -> list[int]:
    """As much as the context has room for, which is what a chat without `max_tokens` asks for -> the tokens."""
    return server.generate(prompt, None)["output_ids"]


def settled(server: Server) -> Server:
    """Wait until the scheduler is idle and has looked for lost KV slots (a loss would end it); return the server.

    A request that has been answered can be part of one more pass of the scheduler, and flushing would hide a loss.
    """
    deadline = time.monotonic() + 60
    while True:
        for _ in range(5):  # each is answered in a pass of its own, and an idle pass ends with SGLang's check
            server.counters()
        if server.http.post("/flush_cache").status_code == 200:
            return server
        assert time.monotonic() < deadline, "the scheduler is still busy"


def plugin_path(root: Path, module: str) -> str:
    """A PYTHONPATH under which servers load tests/sglang_backend/`module`.py as a plugin: its `register`."""
    plugin = root / "plugins" / f"{module}-0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 0\n")
    (plugin / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{module} = {module}:register\n")
    return f"{plugin.parent}:{Path(__file__).parent}:{Path(__file__).parents[2]}"


def refuse(target: Path, *arguments: str, **extra_environment: str) -> tuple[int, str, float]:
    """Start a server that should refuse to start: (exit code, what it said, the processor time it took in seconds).

    Started elsewhere than in the checkout, whose egg-info would put our plugin before those of `plugin_path`.
    """
    command = launch_command(target, free_port(), *SERVE, *arguments)
    before = processor_seconds()
    environment = cpu_environment(**extra_environment)
    done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=180)
    return done.returncode, done.stderr, processor_seconds() - before


def processor_seconds() -> float:
    """The processor time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Checked:
    """What the launcher's check makes of a command line.

    refusal: its sentence, None where it is served; warnings: ours; resolved: what some of `SHOWN` are then.
    """

    refusal: str | None
    warnings: list[str]
    resolved: dict[str, object]


SHOWN = ("speculative_draft_model_path", "speculative_draft_load_format", "speculative_num_steps")


def launcher_checks(arguments: list[list[str]], **extra_environment: str) -> list[Checked]:
    """Run the launcher's argument check on each command line, in one process that serves none.

    An environment variable NAME=VALUE may stand before a command line's first option.
    """
    check = f"""
import json, logging, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.server_args import prepare_server_args
from peagle_core.errors import InputError
class Warnings(logging.Handler):
    def emit(self, record):
        warnings.append(record.getMessage())
logging.getLogger("sglang_backend").addHandler(Warnings(logging.WARNING))
for arguments in json.load(sys.stdin):
    warnings, refusal, resolved = [], None, {{}}
    variables = [a.split("=", 1) for a in arguments[: next(i for i, a in enumerate(arguments) if a[0] == "-")]]
    os.environ.update(variables)
    try:
        server_args = prepare_server_args(arguments[len(variables):])
        server_args.resolve_once()
        view = resolving_view(server_args)
        resolved = {{name: getattr(view, name) for name in {SHOWN}}}
    except InputError as error:
        refusal = str(error)
    for name, _ in variables:
        del os.environ[name]
    print("CHECKED", json.dumps([refusal, warnings, resolved]))
"""
    done = subprocess.run(
        [sys.executable, "-c", check],
        env=cpu_environment(**extra_environment), input=json.dumps(arguments), capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("CHECKED ")]
    assert len(lines) == len(arguments), done.stderr[-3000:]
    return [Checked(*json.loads(line.removeprefix("CHECKED "))) for line in lines]


def refusals(arguments: list[list[str]]) -> list[str | None]:
    """What the launcher's check says against each command line, None: nothing; see `launcher_checks`."""
    return [checked.refusal for checked in launcher_checks(arguments)]


def peagle(head: Path, num_draft_tokens: int | None = None) -> list[str]:
    arguments = ["--speculative-algorithm", "PEAGLE", "--speculative-draft-model-path", str(head)]
    return arguments + ([] if num_draft_tokens is None else ["--speculative-num-steps", str(num_draft_tokens)])


def write_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
