"""Run `python -m sglang.launch_server` as a child and talk to it over HTTP: for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

START_TIMEOUT = 900.0  # seconds; a large model loads for minutes, importing SGLang takes as long on a busy laptop


class Server:
    """A running server. All requests ignore the end token, so that every run generates the same amount.

    session: the session id of its processes, None for a server that somebody else started.
    """

    def __init__(self, url: str, session: int | None = None) -> None:
        self.session = session
        self.http = httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))

    def generate(self, input_ids: list[int], max_new_tokens: int, **sampling: object) -> dict:
        """One request through SGLang's native endpoint, greedy unless `sampling` says otherwise -> its JSON answer."""
        params = {"max_new_tokens": max_new_tokens, "temperature": 0, "ignore_eos": True, **sampling}
        return self.post("/generate", {"input_ids": input_ids, "sampling_params": params})

    def post(self, path: str, body: dict) -> dict:
        """Raises httpx.HTTPStatusError when the server refuses."""
        answer = self.http.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def flush_cache(self) -> None:
        """Wait until nothing runs, then forget every prefix. Raises httpx.HTTPStatusError after 10 busy seconds."""
        self.http.post("/flush_cache", params={"timeout": 10}).raise_for_status()

    def counters(self) -> dict[str, int]:
        """What the PEAGLE worker has counted so far (sglang_backend.counters.Counters)."""
        return self.http.get("/server_info").json()["internal_states"][0]["peagle"]


def ask_all(server: Server, prompts: list[list[int]], max_new_tokens: int, concurrency: int) -> list[dict]:
    """Send all prompts, greedy, `concurrency` at a time; returns the answers in the prompts' order."""
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda prompt: server.generate(prompt, max_new_tokens), prompts))


def launch_command(target: Path, port: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sglang.launch_server", "--model-path", str(target), "--port", str(port), *arguments]


def cpu_environment(**extra: str) -> dict[str, str]:
    """The environment of a server on the CPU reference platform, one thread: two only get in each other's way here."""
    return {**os.environ, "SGLANG_PLATFORM": "peagle_cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serve(target: Path, log: Path, *arguments: str, environment: dict[str, str]) -> Iterator[Server]:
    """A server that has answered its health check. Its output goes to the file `log`; it is stopped on leaving.

    Raises RuntimeError with the end of the log when the server does not come up.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            launch_command(target, port, *arguments),
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(process, url, log)
        yield Server(url, process.pid)
    finally:
        _stop(process)


def _wait_until_healthy(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"the SGLang server did not come up; the end of {log}:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End the server and its children, which share its session."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
