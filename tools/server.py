"""Run `python -m sglang.launch_server` as a child and talk to it over HTTP: for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

PORT_TAKEN = "error while attempting to bind on address"
START_TIMEOUT = 900.0  # seconds; a large model loads for minutes, importing SGLang takes as long on a busy laptop


class Server:
    """A running server. All requests ignore the end token, so that every run generates the same amount.

    session: the session id of its processes, None for a server that somebody else started.
    """

    def __init__(self, url: str, session: int | None = None) -> None:
        self.session = session
        self.http = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))

    def generate(self, input_ids: list[int], max_new_tokens: int, **sampling: object) -> dict[str, Any]:
        """Send one request to SGLang's native endpoint and return its JSON answer.

        Greedy unless `sampling` says otherwise.
        """
        params = {"max_new_tokens": max_new_tokens, "temperature": 0, "ignore_eos": True, **sampling}
        return self.post("/generate", {"input_ids": input_ids, "sampling_params": params})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post JSON and return the answer.

        Raises httpx.HTTPStatusError when the server refuses.
        """
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def flush_cache(self) -> None:
        """Wait until nothing runs, then forget every prefix. Raises httpx.HTTPStatusError after 10 busy seconds."""
        self.http.post("/flush_cache", params={"timeout": 10}).raise_for_status()

    def counters(self) -> dict[str, int]:
        """Return what the PEAGLE worker has counted so far (sglang_backend.counters.Counters)."""
        return self.http.get("/server_info").json()["internal_states"][0]["peagle"]


def ask_all(server: Server, prompts: list[list[int]], max_new_tokens: int, concurrency: int) -> list[dict[str, Any]]:
    """Send all prompts, greedy, `concurrency` at a time; returns the answers in the prompts' order."""
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda prompt: server.generate(prompt, max_new_tokens), prompts))


def launch_command(target: Path, port: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sglang.launch_server", "--model-path", str(target), "--port", str(port), *arguments]


def cpu_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a server on the CPU platform, with one thread: two get in each other's way here."""
    return {**os.environ, "SGLANG_PLATFORM": "peagle_cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system gives to connections (from 32768).

    The server binds it seconds later; by then one of the system's own could be anybody's. Raises RuntimeError for none.
    """
    draw = random.SystemRandom()  # two processes with one seed would draw the same
    for _ in range(100):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port := draw.randrange(20000, 32000)))
            except OSError:
                continue
            return port
    raise RuntimeError("no port between 20000 and 32000 is free")


class Process(Protocol):
    """What `serve` needs of a started process, the leader of its session."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...


def start_by_command(command: list[str], log: Path, environment: dict[str, str]) -> Process:
    """Start the command in a session of its own, its output appended to the file `log`."""
    with log.open("a") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)


Start = Callable[[list[str], Path, dict[str, str]], Process]


@contextmanager
def serve(
    target: Path, log: Path, *arguments: str, environment: dict[str, str], start: Start | None = None
) -> Iterator[Server]:
    """Start a server and yield it once it has answered its health check.

    Its output goes to the file `log`; it is stopped on leaving. start: None is `start_by_command`.
    Raises RuntimeError with the end of the log when the server does not come up.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    process = (start or start_by_command)(launch_command(target, port, *arguments), log, environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        yield Server(url, process.pid)
    finally:
        _stop(process)


def _wait_until_healthy(process: Process, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if PORT_TAKEN in log.read_text(errors="replace"):  # SGLang 0.5.23 then waits for itself for good
            break
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the SGLang server did not come up; the end of {log}:\n{log.read_text()[-3000:]}")


def _stop(process: Process) -> None:
    """End the server and its children, which share its session."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
