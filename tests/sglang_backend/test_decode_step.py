"""The decode step inside a real server: no host synchronisation, graphs of padded batches, and weight updates.

tests/sglang_backend/decode_probe.py is loaded into the server as a plugin and looks at every step.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from byte_models import CONTEXT, VOCAB, drafter_config
from no_host_sync import HostSync, NoHostSync
from prompts import LENGTH, TRAINED, mixed_prompts
from safetensors.torch import load_file, save_file
from servers import peagle, plugin_path, serve, settled, write_config
from tiny import tiny_drafter

from peagle_core.checkpoint import save_drafter
from tools.server import ask_all

NUM_DRAFTS = 5


@pytest.fixture(scope="module")
def probed(models, tmp_path_factory):
    """A server that starts with the random head and has the probe in it."""
    root = tmp_path_factory.mktemp("probed")
    environment = {"PYTHONPATH": plugin_path(root, "decode_probe"), "DECODE_PROBE": str(root / "steps")}
    with serve(models / "target", root / "log", *peagle(models / "random", NUM_DRAFTS), **environment) as server:
        server.steps = root / "steps"
        yield server


def steps_since(server, number: int) -> list[dict]:
    lines = server.steps.read_text().splitlines() if server.steps.exists() else []
    return [json.loads(line) for line in lines[number:]]


def update(server, directory: Path, **options) -> dict:
    return server.http.post("/update_weights_from_disk", json={"model_path": str(directory), **options}).json()


def accept_length(server, expected) -> float:
    answers = ask_all(server, TRAINED, LENGTH, 1)
    assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in TRAINED]
    return sum(len(a["output_ids"]) for a in answers) / sum(a["meta_info"]["spec_verify_ct"] for a in answers)


@pytest.mark.slow
def test_padded_graphs_draft_what_the_eager_pass_drafts_and_nothing_synchronises(probed, expected):
    for concurrency in (1, 2, 3, 5, 12):
        prompts = (mixed_prompts() * 4)[: 3 * concurrency]  # enough that so many do run at once for a while
        answers = ask_all(probed, prompts, LENGTH, concurrency)
        assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in prompts]
    lines = steps_since(probed, 0)
    prefills, steps = ([line for line in lines if ("bs" in line) == decodes] for decodes in (False, True))
    assert len(prefills) > 10 and all(line["prefill_watched"] > 20 for line in prefills)
    assert {(1, 1), (2, 2), (3, 4), (5, 8)} <= {(step["bs"], step["padded"]) for step in steps}
    assert any(step["padded"] is None for step in steps), "more requests than the largest graph: eagerly"
    for step in steps:
        assert step["watched"] > 50 and step["shape"] and step["same"] and step["apart"] < 1e-4, step
        assert step["captured"] > 0, "SGLang's table of what start-up took"
        assert step["reach"] >= CONTEXT + 3 * NUM_DRAFTS, "page tables as long as the rows at the context limit reach"


@pytest.mark.slow
def test_so_do_graphs_of_a_head_with_a_correction(models, expected, tmp_path):
    """The chain of drafts is in the graph; a replay may not draft from the states of another batch."""
    drafter = tiny_drafter(drafter_config(draft_vocab_size=VOCAB // 2, correction_rank=8), dtype=torch.float32)
    save_drafter(drafter, tmp_path / "head", torch.float32)
    environment = {"PYTHONPATH": plugin_path(tmp_path, "decode_probe"), "DECODE_PROBE": str(tmp_path / "steps")}
    with serve(models / "target", tmp_path / "log", *peagle(tmp_path / "head", NUM_DRAFTS), **environment) as server:
        server.steps = tmp_path / "steps"
        for concurrency in (1, 3):
            answers = ask_all(server, mixed_prompts()[:6], LENGTH, concurrency)
            assert [a["output_ids"] for a in answers] == [expected[tuple(p)] for p in mixed_prompts()[:6]]
        steps = [line for line in steps_since(server, 0) if "bs" in line]
    assert {(1, 1), (3, 4)} <= {(step["bs"], step["padded"]) for step in steps}
    assert all(step["watched"] > 50 and step["same"] and step["apart"] < 1e-4 for step in steps)


@pytest.mark.slow
def test_a_weight_update_reaches_the_drafter_and_its_mask_rows(probed, models, expected, tmp_path):
    """The over-fitted head knows TRAINED by heart; with the random head's fc(mask_hidden) it would know one token."""
    assert accept_length(probed, expected) < 2
    assert update(settled(probed), models / "overfit")["success"]
    assert accept_length(probed, expected) >= 0.95 * (NUM_DRAFTS + 1)
    # A directory that holds a target updates the target and leaves the drafter alone.
    assert update(settled(probed), models / "target")["success"]
    assert accept_length(probed, expected) >= 0.95 * (NUM_DRAFTS + 1)


@pytest.mark.slow
def test_a_head_that_cannot_take_over_is_refused_in_a_sentence(probed, models, expected, tmp_path):
    def refused(name: str, change, sentence: str) -> None:
        shutil.copytree(models / "random", tmp_path / name)
        change(tmp_path / name)
        answer = update(probed, tmp_path / name)
        assert not answer["success"] and sentence in answer["message"] and "\n" not in answer["message"], answer

    def without(tensor: str):
        def change(head: Path) -> None:
            tensors = load_file(head / "model.safetensors")
            del tensors[tensor]
            save_file(tensors, head / "model.safetensors")

        return change

    refused("broken", without("norm.weight"), "'norm.weight' is missing")
    refused("shared", without("lm_head.weight"), "has no 'lm_head.weight'")
    refused("other", lambda head: write_config(head, rms_norm_eps=0.5), "rms_norm_eps is 0.5")
    assert ask_all(probed, TRAINED[:1], 8, 1)[0]["output_ids"] == expected[tuple(TRAINED[0])][:8]


@pytest.mark.slow
def test_a_drafter_is_replaced_or_refused_while_requests_wait(probed, models, expected, tmp_path):
    """In a pause, as trainers make it: running requests keep their KV, so SGLang cannot flush its cache."""
    broken = tmp_path / "broken"
    shutil.copytree(models / "random", broken)
    write_config(broken, rms_norm_eps=0.5)
    assert update(settled(probed), models / "random")["success"]
    before = len(steps_since(probed, 0))
    with ThreadPoolExecutor(len(TRAINED)) as pool:
        futures = [pool.submit(probed.generate, prompt, LENGTH) for prompt in TRAINED]
        while not any("bs" in line for line in steps_since(probed, before)):
            time.sleep(0.01)
        assert probed.http.post("/pause_generation", json={"mode": "in_place"}).status_code == 200
        answers = update(probed, broken), update(probed, models / "overfit", flush_cache=False)
        waiting = [not future.done() for future in futures]
        assert probed.http.post("/continue_generation", json={}).status_code == 200
        outputs = [future.result()["output_ids"] for future in futures]
    assert any(waiting)
    assert not answers[0]["success"] and "rms_norm_eps is 0.5" in answers[0]["message"]
    assert answers[1]["success"], answers[1]
    assert outputs == [expected[tuple(prompt)] for prompt in TRAINED]
    assert accept_length(settled(probed), expected) >= 0.95 * (NUM_DRAFTS + 1)


def test_the_watch_sees_what_it_must():
    x, mask = torch.arange(4), torch.tensor([True, False, True, False])
    asks = {
        "item": lambda: x[0].item(), "tolist": x.tolist, "bool": lambda: bool(x[0]), "int": lambda: int(x[0]),
        "index": lambda: list(range(x[1])), "cpu": x.cpu, "numpy": x.numpy, "nonzero": mask.nonzero,
        "mask": lambda: x[mask], "set": lambda: x.__setitem__(mask, 0), "where": lambda: torch.where(mask),
        "max": lambda: max(x), "if": lambda: 1 if x[0] == x[1] else 2, "repeat": lambda: x.repeat_interleave(x),
        "tensor": lambda: torch.tensor([x[0], x[1]]),
    }  # fmt: skip
    for name, ask in asks.items():
        with pytest.raises(HostSync), NoHostSync():
            ask()
            pytest.fail(name)
    with pytest.raises(HostSync), NoHostSync():
        torch.tensor([1, 2]).to("cpu")
    with NoHostSync(x):
        torch.tensor([1, 2]).to("cpu", non_blocking=True)
        assert (x + 1).tolist() == [1, 2, 3, 4] and int(x.sum()) == 6
        assert torch.tensor([3]).item() == 3
    with NoHostSync():
        torch.where(mask, x, 0)[:2].sum() + torch.ones_like(x)
