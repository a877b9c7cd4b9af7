"""What is compared: no speculation, EAGLE3 and PEAGLE with some K, each a server that we start or one that runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from tqdm import tqdm

from peagle_core.errors import InputError
from peagle_core.serve_command import sglang_arguments
from tools.server import Server, cpu_environment, serve

NONE, EAGLE3, PEAGLE = "none", "EAGLE3", "PEAGLE"
SAMPLE = "sample-"  # how the ids of requests begin whose drafts are recorded


@dataclass(frozen=True)
class Launch:
    """How the servers are started. heads: by algorithm; arguments: SGLang's, for every server.

    together: the servers of one K run at the same time and take turns; else one after the other, each alone.
    simulated: an acceptance length that SGLang makes up in place of verifying, None for the real thing.
    """

    target: Path
    heads: dict[str, Path]
    num_draft_tokens: tuple[int, ...]
    arguments: tuple[str, ...] = ()
    together: bool = True
    plain: bool = True
    simulated: float | None = None

    def rounds(self) -> list[list[tuple[str, int]]]:
        """Return (algorithm, K) of the servers of each round; without speculation K is 0."""
        plain = [(NONE, 0)] if self.plain else []
        drafting = [[(algorithm, k) for algorithm in self.heads] for k in self.num_draft_tokens]
        if self.together:
            return [plain + those for those in drafting] if self.heads else [plain]
        return [[one] for one in plain + [one for those in drafting for one in those]]


@dataclass(frozen=True)
class Contender:
    """A running server. k: drafts per step, 0 without speculation; records: where its sampled drafts are written."""

    algorithm: str
    k: int
    server: Server
    command: tuple[str, ...] = ()
    records: Path | None = None
    info: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        return label(self.algorithm, self.k)


def label(algorithm: str, k: int) -> str:
    return "no speculation" if algorithm == NONE else f"{algorithm} K={k}"


@contextmanager
def started(launch: Launch, members: Sequence[tuple[str, int]], directory: Path) -> Iterator[list[Contender]]:
    """Start the servers of one round at the same time and stop them at the end; logs go to directory/logs.

    Raises InputError, with the last line of the log, when one does not come up.
    """

    def start(member: tuple[str, int]) -> Contender:
        algorithm, k = member
        name = f"{algorithm}-{k}" if k else algorithm
        records = directory / "records" / name if algorithm == PEAGLE else None
        log = directory / "logs" / f"{name}.log"
        head = launch.heads.get(algorithm)
        drafter = sglang_arguments(str(head), k, autoregressive=algorithm == EAGLE3) if head else []
        arguments = [*launch.arguments, *drafter]
        try:
            server = stack.enter_context(
                serve(launch.target, log, *arguments, environment=_environment(launch, records))
            )
        except RuntimeError as error:
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            last = said[-1].strip() if said else "nothing"
            raise InputError(
                f"the server {label(algorithm, k)} did not come up; the last line of {log}: {last}"
            ) from error
        return Contender(algorithm, k, server, tuple(arguments), records, server_info(server))

    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            starting = tqdm(pool.map(start, members), "starting", len(members), unit="server", dynamic_ncols=True)
            contenders = list(starting)
        yield contenders


def _environment(launch: Launch, records: Path | None) -> dict[str, str]:
    extra = {"PEAGLE_RECORD_DIR": str(records), "PEAGLE_RECORD_RIDS": SAMPLE} if records else {}
    if launch.simulated is not None:
        extra |= {
            "SGLANG_SIMULATE_ACC_LEN": str(launch.simulated),
            "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
        }
    return {**os.environ, **extra} if torch.cuda.is_available() else cpu_environment(**extra)


@contextmanager
def running(urls: Sequence[str]) -> Iterator[list[Contender]]:
    """Describe servers that somebody else runs, by what they say of themselves. Raises InputError when one is away."""
    contenders = []
    for url in urls:
        server = Server(url.rstrip("/"))
        info = server_info(server)
        algorithm = info.get("speculative_algorithm") or NONE
        k = 0 if algorithm == NONE else int(info["speculative_num_draft_tokens"]) - 1
        contenders.append(Contender(algorithm, k, server, (url,), info=info))
    yield contenders


def server_info(server: Server) -> dict[str, Any]:
    try:
        answer = server.http.get("/server_info")
        answer.raise_for_status()
        return dict(answer.json())
    except (httpx.HTTPError, ValueError) as error:
        raise InputError(f"no SGLang server answers at {server.http.base_url}: {error}") from error
