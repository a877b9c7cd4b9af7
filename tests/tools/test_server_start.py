"""Starting a server: its port is no connection's, and one that finds its port taken is not waited for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from time import monotonic

import pytest

from tools.server import free_port, serve

FIRST_OF_THE_SYSTEM = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
TAKEN = "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 46835): address already in use\n"


def test_no_port_is_one_that_the_system_hands_out():
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40 and max(ports) < FIRST_OF_THE_SYSTEM


def test_a_port_that_is_taken_is_told_at_once(tmp_path):
    def hangs(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        log.write_text(TAKEN)
        return subprocess.Popen(["sleep", "600"], start_new_session=True)

    start = monotonic()
    with (
        pytest.raises(RuntimeError, match="address already in use"),
        serve(tmp_path, tmp_path / "log", environment=dict(os.environ), start=hangs),
    ):
        pass
    assert monotonic() - start < 20
