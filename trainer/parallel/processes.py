"""More than one process, as torchrun starts them: who we are, what all of them know, and who speaks.

Small facts (counts, choices, errors) travel as Python objects over gloo, whatever the weights travel on. A process that
fails sends its error in place of what the others wait for, so that all of them stop with the same sentence, which the
first one prints. In a single process there is no process group, and everything here answers for one.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sized
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist

from peagle_core.errors import InputError, first_line
from peagle_core.metrics import DraftMetrics
from trainer.errors import ConfigError

T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Others may wait for a download or a slow last prompt. That a process has ended, torchrun notices by itself.
TIMEOUT = timedelta(hours=2)


class Lost(InputError):
    """Another process is not there any more."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this is the one process that prints and writes what is written once."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join what torchrun's environment describes; alone, do nothing. All but the first process are silent inside.

    Raises ConfigError, one sentence, where the environment is incomplete or has more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if missing := [name for name in ENVIRONMENT if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {', '.join(missing)} not set; start with "
            "`torchrun --nproc-per-node N -m peagle train ...`, or unset WORLD_SIZE"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        wanted, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if wanted > there:
            raise ConfigError(f"{wanted} processes on a machine with {there} GPUs; say --nproc-per-node {there}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        place, reason = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", first_line(error)
        raise InputError(f"the other processes cannot be reached through {place} ({reason})") from None
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_main() else nowhere):
        yield
        barrier()  # an error of the last moment still finds the others
    dist.destroy_process_group()


def exchange(value: T) -> list[T]:
    """Return everybody's value, by rank. Collective. Raises the error that another process sent instead."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    try:
        dist.all_gather_object(values, (socket.gethostname(), value))
    except RuntimeError:
        raise _known(Lost("another process ended; what it said stands above")) from None
    errors = {i: (host, found) for i, (host, found) in enumerate(values) if isinstance(found, Exception)}
    if errors:
        first, (host, error) = min(errors.items())
        if len(errors) < size() and first > 0:  # some things the first one does alone
            error = type(error)(f"process {first} on {host}: {error}")
        raise _known(error)
    return [found for _, found in values]


def send_error(error: Exception) -> Exception:
    """Send an error to all others, who raise it where they next exchange. To be called once, at the end.

    Returns the error to report.
    """
    if size() > 1 and not known_to_all(error):
        try:
            exchange(error)
        except Lost:
            return error
        except Exception as shared:
            return shared
    return error


def known_to_all(error: Exception) -> bool:
    return getattr(error, "known_to_all", False)


def _known(error: Exception) -> Exception:
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def everywhere(message: str) -> Exception:
    """Make an InputError that every process raises by itself, from what all of them know."""
    return _known(InputError(message))


def from_main(value: T) -> T:
    """Return the first process's value. Collective."""
    return exchange(value if is_main() else None)[0]  # type: ignore[return-value]


def check_same(value: T, what: str) -> None:
    """Raise InputError where a process has another value (compared with ==) than the first one. Collective."""
    values = exchange(value)
    if other := [i for i, found in enumerate(values) if found != values[0]]:
        raise everywhere(f"{what} of process {other[0]} differs from process 0's; all must start alike")


def barrier() -> None:
    exchange(None)


def check_shared(directory: Path) -> None:
    """Make a directory. Raises InputError where a process does not see what the first one writes there. Collective."""
    if size() == 1:
        return
    sign = directory / f".seen-{from_main(uuid4().hex)}"
    if is_main():
        directory.mkdir(parents=True, exist_ok=True)
        sign.touch()
    barrier()
    blind = [i for i, sees in enumerate(exchange(sign.exists())) if not sees]
    if is_main():
        sign.unlink()
    if blind:
        raise everywhere(f"{directory} is not the same place for process {blind[0]}; all machines must share it")


def mine(work: Sized) -> range:
    """Return the places of this process's share of some work: every size()-th."""
    return range(rank(), len(work), size())


def merged(done: dict[int, T]) -> list[T]:
    """Return the results of all processes, by place. Collective."""
    everything: dict[int, T] = {}
    for share in exchange(done):
        everything.update(share)
    return [everything[place] for place in sorted(everything)]


def sum_metrics(metrics: DraftMetrics | None) -> DraftMetrics | None:
    """Sum counts over all processes; None where nobody has any. Collective."""
    if size() == 1:
        return metrics
    shares = exchange(None if metrics is None else [t.tolist() for t in metrics.tensors()])
    total = None
    for share in shares:
        if share is not None:
            loss_sum, *counts = share
            one = DraftMetrics(torch.tensor(loss_sum, dtype=torch.float64), *(torch.tensor(c) for c in counts))
            total = one if total is None else total + one
    return total
