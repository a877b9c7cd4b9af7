"""Start servers on the CPU platform by `sglang_backend.cpu.preloaded`: 5 seconds of processor time instead of 75.

The demo, `tools.bench serve` and the tests start many. What differs from `python -m sglang.launch_server`: modules come
from the fork. Servers on a GPU, and with settings that SGLang may read while it is imported, are started by that
command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.server import Process, cpu_environment, start_by_command

# Variables that are read when a server runs, so that a fork may change them; the second kind `preloaded` reads anew.
READ_LATE = ("PEAGLE_", "SGLANG_SIMULATE_ACC_")
_one_request = threading.Lock()


@dataclass
class Forked:
    """A server's first process, which is no child of this one: as much of subprocess.Popen as `server.serve` uses."""

    pid: int

    def poll(self) -> int | None:
        """Return None while it runs, then -1: its exit code is not known here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return -1
        return None

    def wait(self, timeout: float) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.05)
        return code


def start(command: list[str], log: Path, environment: dict[str, str]) -> Process:
    """Fork a server from the preloaded process of this one where that makes no difference, else run the command."""
    changed = [name for name, _ in environment.items() ^ cpu_environment().items() if not name.startswith(READ_LATE)]
    if changed:
        return start_by_command(command, log, environment)
    request = {"arguments": command[3:], "log": str(log), "environment": environment}
    with _one_request:
        preloaded = _preloaded()
        assert preloaded.stdin and preloaded.stdout
        preloaded.stdin.write(json.dumps(request) + "\n")
        preloaded.stdin.flush()
        pid = preloaded.stdout.readline()
    if not pid:
        raise RuntimeError("`python -m sglang_backend.cpu.preloaded` ended; run by hand, it says why")
    return Forked(int(pid))


@cache
def _preloaded() -> subprocess.Popen[str]:
    """Return the preloaded process; it ends when its stdin does, that is with this process."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "sglang_backend.cpu.preloaded"],
        env=cpu_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
