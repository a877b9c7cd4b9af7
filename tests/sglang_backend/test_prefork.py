"""Servers that were forked end with the process that asked for them, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from servers import SERVE

from tools.prefork import Forked
from tools.server import cpu_environment

pytestmark = pytest.mark.slow

KILLED = """
import os, sys
from pathlib import Path
from tools import prefork
from tools.server import cpu_environment, serve
target, log, *arguments = sys.argv[1:]
with serve(Path(target), Path(log), *arguments, environment=cpu_environment(), start=prefork.start) as server:
    print(server.session, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_killed_benchmark_leaves_no_server(models, tmp_path):
    command = [sys.executable, "-c", KILLED, str(models / "target"), str(tmp_path / "log"), *SERVE]
    done = subprocess.run(command, env=cpu_environment(), capture_output=True, text=True, timeout=300)
    server = Forked(int(done.stdout))
    assert done.returncode == -9
    assert server.wait(60) == -1
    time.sleep(1)
    with pytest.raises(ProcessLookupError):  # nor any of its processes
        os.killpg(server.pid, 0)
