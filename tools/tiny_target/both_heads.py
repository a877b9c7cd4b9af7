"""Train the P-EAGLE and the EAGLE-3 head at the same time, each on half of the cores."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import torch

from peagle_core.errors import InputError
from tools.tiny_target.head import HEADS, HeadRecipe, build_generations, build_head


def use_half_of_the_cores() -> None:
    """Leave half of the cores to other work.

    Beside it OpenMP threads wait for each other: on 2 busy cores a step took 4 s with two, 0.6 with one.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))


def build_both_heads(directory: Path, recipe: HeadRecipe) -> None:
    """Write every head of HEADS that is not in `directory` yet. P-EAGLE's training is seen, EAGLE-3's goes to a log.

    Raises InputError when a training fails or is stopped; the same command continues it.
    """
    if all((directory / name).is_dir() for name in HEADS.values()):
        return
    build_generations(directory, recipe)
    log = directory / "logs" / "eagle3-head.log"
    log.parent.mkdir(exist_ok=True)
    # A daemon: it ends, with a checkpoint, when this process gives up.
    arguments = (directory, recipe, log)
    aside = multiprocessing.get_context("spawn").Process(target=_build_aside, args=arguments, daemon=True)
    aside.start()
    build_head(directory, recipe)
    print(f"waiting for the EAGLE-3 head ({log})", flush=True)
    aside.join()
    if aside.exitcode:
        raise InputError(f"the EAGLE-3 head was not trained, the end of {log} says why; the same command tries again")


def _build_aside(directory: Path, recipe: HeadRecipe, log: Path) -> None:
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    use_half_of_the_cores()
    try:
        build_head(directory, recipe, "eagle3")
    except InputError as error:
        sys.exit(str(error))
