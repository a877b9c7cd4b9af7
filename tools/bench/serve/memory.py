"""How much memory a server's processes have taken."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def peak_host_mib(session: int) -> float | None:
    """Return the sum of the peaks of all processes of a session (a server we started), None where /proc is missing.

    Pages that processes share are counted for each of them.
    """
    peaks = []
    for process in _processes(session):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile
        peaks += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return sum(peaks) if peaks else None


def gpu_mib(session: int) -> float | None:
    """Return what the session's processes hold on the GPUs, as nvidia-smi sees it; None without one.

    SGLang takes its memory at start and keeps it, so what it holds is its peak.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    processes = set(_processes(session))
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    used = [float(mib) for pid, mib in rows if int(pid) in processes and mib.strip().replace(".", "").isdigit()]
    return sum(used) if used else None


def _processes(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
