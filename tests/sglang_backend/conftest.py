from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from byte_models import overfit_head, save_random_head, save_target
from prompts import LENGTH, PHRASE, PHRASE_PROMPT, TRAINED, feature_requests, mixed_prompts
from servers import peagle, serve
from transformers import AutoTokenizer

from tools.server import ask_all


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """target/, random/ (an untrained head), overfit/ (a head that knows TRAINED by heart)."""
    root = tmp_path_factory.mktemp("models")
    save_target(root / "target")
    save_random_head(root / "random")
    tokenizer = AutoTokenizer.from_pretrained(root / "target")
    phrase = (PHRASE_PROMPT, [*tokenizer.encode(PHRASE), tokenizer.eos_token_id])
    overfit_head(
        root / "overfit",
        root / "target",
        TRAINED,
        LENGTH + 8,
        forced=(phrase,),
        steps=200,  # the last step drafts past the end
    )
    return root


@dataclass(frozen=True)
class Plain:
    """What the same server answers without speculation, asked one at a time: mixed_prompts(), and FEATURES by name."""

    outputs: dict[tuple[int, ...], list[int]]
    answers: dict[str, dict]


@pytest.fixture(scope="session")
def plain(models, tmp_path_factory) -> Plain:
    # Without overlap SGLang's penalties count every token of the output; with it the last one comes a step late.
    log = tmp_path_factory.mktemp("none") / "log"
    with serve(models / "target", log, "--disable-overlap-schedule") as server:
        answers = ask_all(server, mixed_prompts(), LENGTH, 1)
        outputs = {tuple(p): a["output_ids"] for p, a in zip(mixed_prompts(), answers, strict=True)}
        requests = feature_requests(outputs[tuple(TRAINED[0])])
        return Plain(outputs, {name: server.post("/generate", body) for name, body in requests.items()})


@pytest.fixture(scope="session")
def expected(plain) -> dict[tuple[int, ...], list[int]]:
    return plain.outputs


@pytest.fixture(scope="session")
def overfit_server(models, tmp_path_factory):
    """PEAGLE with the over-fitted head, K = 5 from its config, every pass recorded under `records`."""
    root = tmp_path_factory.mktemp("overfit")
    arguments = [*peagle(models / "overfit"), "--enable-metrics", "--reasoning-parser", "qwen3"]
    arguments += ["--trust-request-chat-template"]
    with serve(models / "target", root / "log", *arguments, PEAGLE_RECORD_DIR=str(root / "records")) as server:
        server.records = root / "records"
        yield server
