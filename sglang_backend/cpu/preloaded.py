"""python -m sglang_backend.cpu.preloaded: import SGLang once, then fork a server of the CPU platform for every request.

A server is three processes, and each spends some 18 seconds of processor time on SGLang's imports before it does
anything; forked from a process that has imported them, a server is up in 5. It runs the very module that
`python -m sglang.launch_server` runs. For tests and comparisons of many servers, through `tools.prefork`.

A request is a line of JSON on stdin: {"arguments": [...], "log": PATH, "environment": {...}}; the answer a line on
stdout: the server's process id. At the end of stdin the servers are ended, too. One thread only (OMP_NUM_THREADS=1): a
pool of OpenMP threads does not survive a fork.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from contextlib import suppress


def main() -> None:
    """Import what a server's processes import, in their order, then serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever SGLang prints while it is imported
    import sglang.launch_server
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    from sglang.srt.plugins import load_plugins

    load_plugins()
    import sglang.srt.models.registry  # noqa: F401  (a real server imports the models after the plugins, too)

    servers: set[int] = set()

    def reap(*_signal: object) -> None:
        for pid in tuple(servers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                servers.discard(pid)

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            become_server(request["arguments"], request["log"], request["environment"])
        servers.add(pid)
        answers.write(f"{pid}\n")
        answers.flush()
        reap()
    for pid in tuple(servers):
        with suppress(ProcessLookupError):  # it has ended meanwhile; the others are still to be told
            os.killpg(pid, signal.SIGTERM)


def become_server(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """Be `python -m sglang.launch_server *arguments` in a session of its own, output appended to `log`; never return.

    Its own processes are forked as well, where SGLang says spawn.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sglang.launch_server", *arguments]
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_, **__: None  # type: ignore[assignment]
    _read_simulated_acceptance()
    code = 0
    try:
        runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _read_simulated_acceptance() -> None:
    """Read anew what SGLang has settled when it imported the module."""
    from sglang.srt.environ import envs
    from sglang.srt.speculative import spec_utils

    spec_utils.SIMULATE_ACC_LEN = envs.SGLANG_SIMULATE_ACC_LEN.get()
    spec_utils.SIMULATE_ACC_TOKEN_MODE = envs.SGLANG_SIMULATE_ACC_TOKEN_MODE.get()


if __name__ == "__main__":
    main()
