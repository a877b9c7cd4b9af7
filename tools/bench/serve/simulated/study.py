"""From --size to the options that the benchmark has anyway: directories of configs, random prompts, floors."""

from __future__ import annotations

import argparse

import torch

from peagle_core.errors import InputError
from tools.bench.kernels import milliseconds
from tools.bench.serve.contenders import EAGLE3, PEAGLE
from tools.bench.serve.simulated.sizes import pass_bytes, read_size, write_models, write_prompts

ALONE = 4  # prompts that are asked where requests come one at a time
ROOM = 64  # tokens of a request beyond its prompt and answer: drafts, masks, pages


def prepare_size(args: argparse.Namespace) -> None:
    """Set --target, --peagle, --eagle3, --data and what else a model without weights needs.

    Raises InputError where other models or data are given as well, or no acceptance.
    """
    if args.target or args.peagle or args.eagle3 or args.url or args.data:
        raise InputError("--size makes its own target, heads and prompts: leave out --target, heads, --url and --data")
    if args.simulate_accept_length is None:
        raise InputError("--size needs --simulate-accept-length: random weights draft nothing that stands")
    size, directory = read_size(args.size), args.output / "models"
    args.target, heads = write_models(size, directory)
    args.peagle, args.eagle3 = heads[PEAGLE], heads[EAGLE3]
    number = max(8, 2 * max(args.concurrency))
    args.data = [f"random={write_prompts(size, directory / 'random.jsonl', number, args.prompt_tokens)}"]
    args.ignore_end, args.samples = True, 0
    args.server_args = f"{_server_arguments(args)} {args.server_args}"  # the later counts


def _server_arguments(args: argparse.Namespace) -> str:
    """Return SGLang's options of a server that holds what is asked and no more, so that three fit on one GPU.

    By itself each would take the memory that the others are about to use.
    """
    most, context = max(args.concurrency), args.prompt_tokens + args.max_new_tokens + ROOM
    own = f"--load-format dummy --context-length {context} --max-total-tokens {(most + 1) * context}"
    own += f" --max-running-requests {most}"
    if torch.cuda.is_available():
        own += " --mem-fraction-static 0.93 --cuda-graph-bs-decode " + " ".join(map(str, sorted(set(args.concurrency))))
    return own


def size_floors(name: str, drafts: tuple[int, ...]) -> dict[tuple[str, int], float]:
    """Return the milliseconds that reading a step's drafter weights takes at the bandwidth of a copy, measured here."""
    size, bandwidth = read_size(name), _bandwidth_of_a_copy()
    return {
        (algorithm, k): 1e3 * pass_bytes(size, algorithm, k) / bandwidth
        for algorithm in (EAGLE3, PEAGLE)
        for k in drafts
    }


def _bandwidth_of_a_copy() -> float:
    """Return bytes a second, read and written."""
    on_gpu = torch.cuda.is_available()
    length, device = (2**30, torch.device("cuda")) if on_gpu else (2**26, torch.device("cpu"))
    took = _milliseconds_of_a_copy(length, device)
    if on_gpu:
        torch.cuda.empty_cache()  # the servers need it
    return 2 * length / took * 1e3


def _milliseconds_of_a_copy(length: int, device: torch.device) -> float:
    x = torch.ones(length, device=device, dtype=torch.int8)
    y = torch.ones_like(x)
    return milliseconds(lambda: y.copy_(x), device)
