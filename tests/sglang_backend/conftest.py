from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from byte_models import overfit_head, save_random_head, save_target
from servers import peagle, serve

from tools.server import Server

TRAINED = [[i * 7 % 250 + j for j in range(3 + i)] for i in range(4)]  # prompts the over-fitted head knows
LENGTH = 61


def mixed_prompts() -> list[list[int]]:
    """One token, short, long, and with a shared prefix (radix cache hits)."""
    shared = [(11 * i) % 250 for i in range(40)]
    return [[5], [1, 2, 3], shared, [*shared, 9], [*shared, 9, 10, 11], [(3 * i) % 240 for i in range(150)], *TRAINED]


def ask_all(server: Server, prompts: list[list[int]], max_new_tokens: int, concurrency: int) -> list[dict]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda p: server.generate(p, max_new_tokens), prompts))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """target/, random/ (an untrained head), overfit/ (a head that knows TRAINED by heart)."""
    root = tmp_path_factory.mktemp("models")
    save_target(root / "target")
    save_random_head(root / "random")
    overfit_head(root / "overfit", root / "target", TRAINED, LENGTH + 8)  # the last step drafts past the end
    return root


@pytest.fixture(scope="session")
def expected(models, tmp_path_factory) -> dict[tuple[int, ...], list[int]]:
    """Greedy output of the same server without speculation, asked one at a time."""
    with serve(models / "target", tmp_path_factory.mktemp("none") / "log") as server:
        answers = ask_all(server, mixed_prompts(), LENGTH, 1)
    return {tuple(p): a["output_ids"] for p, a in zip(mixed_prompts(), answers, strict=True)}


@pytest.fixture(scope="session")
def overfit_server(models, tmp_path_factory):
    """PEAGLE with the over-fitted head, K = 5 from its config, every pass recorded under `records`."""
    root = tmp_path_factory.mktemp("overfit")
    with serve(
        models / "target", root / "log", *peagle(models / "overfit"), PEAGLE_RECORD_DIR=str(root / "records")
    ) as server:
        server.records = root / "records"
        yield server
