"""The two studies: the paper's ablations on the tiny target, and on a real chat model with what we add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.ablations import contrasts, smollm2
from tools.ablations.contrasts import Contrast

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Study:
    """One base, what each configuration changes of it by its full keys, and which are compared.

    page: name of its page and record in docs. about: the page's paragraph on target, data and budget. loop: how the
    page names the loop that acceptance is measured by. seeds: how many a finished study has of every configuration.
    """

    page: str
    base: Path
    configurations: dict[str, dict[str, Any]]
    contrasts: tuple[Contrast, ...]
    about: str
    loop: str
    seeds: int


STUDIES = {
    "tiny": Study(
        page="ablations",
        base=HERE / "base.yaml",
        configurations=contrasts.CONFIGURATIONS,
        contrasts=contrasts.CONTRASTS,
        about=contrasts.ABOUT,
        loop="the reference loop",
        seeds=3,
    ),
    "smollm2": Study(
        page="ablations_smollm2",
        base=HERE / "smollm2.yaml",
        configurations=smollm2.CONFIGURATIONS,
        contrasts=smollm2.CONTRASTS,
        about=smollm2.ABOUT,
        loop="the drafter loop along the target's answers",
        seeds=1,
    ),
}
