"""What is compared: no speculation, EAGLE3 and PEAGLE with some K, each a server that we start or one that runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from tqdm import tqdm

from peagle_core.errors import InputError
from peagle_core.serve_command import sglang_arguments
from tools import prefork
from tools.bench.serve import drafter_time
from tools.bench.serve.lengths import Lengths
from tools.server import Server, cpu_environment, serve

NONE, EAGLE3, PEAGLE = "none", "EAGLE3", "PEAGLE"
CANDIDATES = (1, 2, 3, 5, 7)  # drafts to verify by confidence; on a GPU each of them has graphs of its own
SAMPLE = "sample-"  # how the ids of requests begin whose drafts are recorded


@dataclass(frozen=True)
class Launch:
    """How the servers are started. heads: by algorithm; arguments: SGLang's, for every server.

    together: the servers of one K run at the same time and take turns; else one after the other, each alone.
    simulated: acceptance lengths that SGLang makes up in place of verifying, None for the real thing; floors: the
    milliseconds that a step's drafting takes at least, by (algorithm, K): where they are known, drafting is timed.
    confidence: of PEAGLE's K drafts those that are as likely to stand are verified (`sglang_backend.confidence`); None
    for all of them.
    """

    target: Path
    heads: dict[str, Path]
    num_draft_tokens: tuple[int, ...]
    arguments: tuple[str, ...] = ()
    together: bool = True
    plain: bool = True
    simulated: Lengths | None = None
    floors: dict[tuple[str, int], float] = field(default_factory=dict)
    confidence: float | None = None

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


class Fleet:
    """The servers of a Launch, as a context that stops them all. Logs and records go below `directory`.

    A server that takes part in the next round as well is kept: on two cores a start takes longer than many a load.
    """

    def __init__(self, launch: Launch, directory: Path) -> None:
        self.launch, self.directory = launch, directory
        self._running: dict[tuple[str, int], tuple[Contender, ExitStack]] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop(set(self._running))

    def open(self, members: Sequence[tuple[str, int]]) -> list[Contender]:
        """Stop the servers that are not among `members` and start those missing, at the same time.

        members: (algorithm, K), as Launch.rounds gives them. Raises InputError, with the last line of the log, when one
        does not come up; the others of this round are stopped at the end, as all are.
        """
        self._stop(set(self._running) - set(members))
        missing = [member for member in members if member not in self._running]
        with ThreadPoolExecutor() as pool:
            list(tqdm(pool.map(self._start, missing), "starting", len(missing), unit="server", dynamic_ncols=True))
        return [self._running[member][0] for member in members]

    def _start(self, member: tuple[str, int]) -> None:
        algorithm, k = member
        name = f"{algorithm}-{k}" if k else algorithm
        records = self.directory / "records" / name if algorithm == PEAGLE else None
        log = self.directory / "logs" / f"{name}.log"
        head = self.launch.heads.get(algorithm)
        drafter = sglang_arguments(str(head), k, autoregressive=algorithm == EAGLE3) if head else []
        arguments = [*self.launch.arguments, *drafter]
        if self.launch.confidence is not None and algorithm == PEAGLE:
            arguments += _verified_by_confidence(self.launch.confidence, k, self.directory)
        if self.launch.floors:
            arguments += drafter_time.ARGUMENTS
        environment = _environment(self.launch, member, records)
        with ExitStack() as stack:
            try:
                server = stack.enter_context(
                    serve(self.launch.target, log, *arguments, environment=environment, start=prefork.start)
                )
            except RuntimeError as error:
                said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                last = said[-1].strip() if said else "nothing"
                raise InputError(
                    f"the server {label(algorithm, k)} did not come up; the last line of {log}: {last}"
                ) from error
            contender = Contender(algorithm, k, server, tuple(arguments), records, server_info(server))
            self._running[member] = contender, stack.pop_all()

    def _stop(self, members: Iterable[tuple[str, int]]) -> None:
        with ExitStack() as ends:  # all of them, also when stopping one fails
            for member in members:
                ends.push(self._running.pop(member)[1])


def _verified_by_confidence(least: float, k: int, directory: Path) -> list[str]:
    """Return the arguments of a server that verifies up to k drafts; writes the table that they name."""
    table = directory / f"confidence-{k}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    steps = sorted({min(k, steps) for steps in CANDIDATES} | {k})
    table.write_text(json.dumps({"confidence": least, "1": {"candidate_steps": steps}}))
    return ["--speculative-adaptive", "--speculative-adaptive-config", str(table)]


def _environment(launch: Launch, member: tuple[str, int], records: Path | None) -> dict[str, str]:
    extra = {"PEAGLE_RECORD_DIR": str(records), "PEAGLE_RECORD_RIDS": SAMPLE} if records else {}
    if launch.simulated is not None and member[1]:
        extra |= {
            "SGLANG_SIMULATE_ACC_LEN": str(launch.simulated.of(*member)),
            "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
        }
    if launch.floors and torch.cuda.is_available():
        extra |= drafter_time.ENVIRONMENT
    return {**os.environ, **extra} if torch.cuda.is_available() else cpu_environment(**extra)


def running(urls: Sequence[str]) -> list[Contender]:
    """Describe servers that somebody else runs, by what they say of themselves. Raises InputError when one is away."""
    contenders = []
    for url in urls:
        server = Server(url.rstrip("/"))
        info = server_info(server)
        algorithm = info.get("speculative_algorithm") or NONE
        k = 0 if algorithm == NONE else int(info["speculative_num_draft_tokens"]) - 1
        contenders.append(Contender(algorithm, k, server, (url,), info=info))
    return contenders


def server_info(server: Server) -> dict[str, Any]:
    try:
        answer = server.http.get("/server_info")
        answer.raise_for_status()
        return dict(answer.json())
    except (httpx.HTTPError, ValueError) as error:
        raise InputError(f"no SGLang server answers at {server.http.base_url}: {error}") from error
