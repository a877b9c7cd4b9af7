"""`tools.bench parity`: a server's every pass is the reference loop's, and one that is not is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.generate import drafts_of
from tools.bench.__main__ import main
from tools.bench.parity.cases import CPU, EXACT
from tools.bench.parity.command import Outcome, run_case
from tools.bench.parity.compare import Compared, Pass, compare, recorded_passes, reference_logits
from tools.bench.parity.models import save_models

K = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_models(root, large=False)
    return root


@pytest.fixture(scope="module")
def pair(models):
    """(the target, a head with a draft vocabulary and a correction), in float32."""
    target = LlamaForCausalLM.from_pretrained(models / "target", dtype=torch.float32).eval()
    return target, load_drafter(models / "other").float()


TEXTS = {"a": (3, list(range(20, 40))), "b": (9, list(range(50, 65)))}


@pytest.fixture
def passes(pair) -> list[Pass]:
    """What a server without fault would have recorded: prefills, steps, and what is not to be compared."""
    places = [("a", 4), ("b", 10), ("a", 7), ("b", 12), ("a", 20), ("a", 3), ("a", 21), ("unknown", 5)]
    made = []
    for number, (rid, known) in enumerate(places):
        tokens = torch.tensor((TEXTS.get(rid) or TEXTS["a"])[1])
        ids = torch.cat([tokens, tokens])[:known]
        drafts = torch.zeros(K, dtype=torch.int64)
        for slot in range(K):  # each from those before it
            drafts[slot] = drafts_of(pair[1], reference_logits(*pair, ids, drafts), ids, drafts)[slot]
        made.append(Pass(number, 1 + number % 2, rid, known, drafts, reference_logits(*pair, ids, drafts)))
    return made


def compared(passes: list[Pass], pair, **options) -> Compared:
    return compare(iter(passes), TEXTS, *pair, EXACT, **options)


def test_the_reference_equals_itself(passes, pair):
    """Passes of a chunk, past a request's limit and of strangers are left out."""
    seen = compared(passes, pair)
    assert seen.first is None and seen.drafts_equal == 1 and seen.largest < 1e-5
    assert (seen.passes, seen.after_prefill, seen.by_k, seen.by_batch) == (5, 2, {K: 5}, {1: 3, 2: 2})


FAULTS: dict[str, Callable[[Pass], Pass]] = {
    "a slot's logits": lambda p: replace(
        p, logits=p.logits + torch.eye(K, p.logits.shape[1]) * (0.01 * p.logits.norm())
    ),
    "slots swapped": lambda p: replace(p, logits=p.logits.flip(0), drafts=p.drafts.flip(0)),
    "a draft that is not the argmax": lambda p: replace(p, drafts=p.drafts.roll(1)),
    "a token behind": lambda p: replace(p, known=p.known - 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_pass_that_differs_is_told(passes, pair, fault):
    wrong = [*passes[:2], FAULTS[fault](passes[2]), FAULTS[fault](passes[3]), *passes[4:]]
    first = compared(wrong, pair).first
    assert first is not None and (first.number, first.rid, first.prompt) == (2, "a", 3)
    assert "pass 2 of 1 requests, request a: prompt of 3 tokens" in str(first) and f"K = {K}" in str(first)


def test_what_retraction_took_back_is_left_out_and_counted(passes, pair):
    """Request a drafted at 9 and 7 tokens and went on from 7: what it said at 9 and first at 7 is nowhere written."""
    lost = [FAULTS["slots swapped"](replace(passes[2], known=known)) for known in (9, 7)]
    seen = compared([*passes[:2], *lost, *passes[2:]], pair)
    assert (seen.passes, seen.taken_back, seen.first) == (5, 2, None)
    behind = compared([*passes, replace(FAULTS["slots swapped"](passes[3]), known=15)], pair)
    assert (behind.passes, behind.taken_back) == (6, 0) and behind.first is not None, "nothing stands behind it"


def test_a_prefill_without_room_for_masks_has_one_draft(passes, pair):
    first = passes[0]
    alone = replace(first, logits=first.logits[:1].expand(K, -1), drafts=first.drafts[:1].expand(K))
    assert compared([alone, *passes[1:]], pair).first is not None
    assert compared([alone, *passes[1:]], pair, first_slot_alone=True).first is None
    assert compared([*passes[:2], replace(alone, known=7)], pair, first_slot_alone=True).first is not None, "a step"


def test_a_case_that_is_not_there_and_a_machine_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    assert main(["parity", "--output", str(tmp_path)]) == 1
    assert "SGLANG_PLATFORM=peagle_cpu" in capsys.readouterr().err
    monkeypatch.setenv("SGLANG_PLATFORM", "peagle_cpu")
    assert main(["parity", "--case", "fp8", "--output", str(tmp_path)]) == 1
    assert "no case 'fp8' on the CPU platform; there are default, adaptive" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adaptive(models, tmp_path_factory) -> tuple[Outcome, Path]:
    """One server for all: K of 5, 3 and 1 by load, pages, chunks, radix hits, a draft vocabulary."""
    directory = tmp_path_factory.mktemp("parity")
    return run_case("adaptive", CPU["adaptive"], models, directory, 24, [], False), directory


@pytest.mark.slow
def test_every_pass_of_a_server_is_the_reference_loops(adaptive):
    outcome, _ = adaptive
    seen = outcome.compared
    assert outcome.ok, str(outcome)
    assert seen.drafts_equal == 1 and outcome.no_masks == 0
    # K follows the load and batches follow the clock, so how often each was seen differs from machine to machine.
    assert set(seen.by_k) <= {1, 3, 5} and min(seen.by_k[1], seen.by_k[5]) >= 10, seen.by_k
    assert 1 in seen.by_batch and len(seen.by_batch) > 1 and seen.after_prefill >= 10, (
        seen.by_batch,
        seen.after_prefill,
    )
    assert str(outcome).startswith("adaptive: ok: ") and "first difference" not in str(outcome)


@pytest.mark.slow
def test_another_head_would_have_been_told(adaptive, pair):
    """The same records beside a head whose mask rows read another state, and one that maps its ids otherwise."""
    outcome, directory = adaptive
    target, drafter = pair
    texts = json.loads((directory / "adaptive/texts.json").read_text())
    with torch.no_grad():
        drafter.mask_hidden.mul_(1.1)
        seen = compare(recorded_passes(directory / "adaptive/passes"), texts, target, drafter, EXACT)
        drafter.mask_hidden.div_(1.1)
    assert seen.passes == outcome.compared.passes and seen.first is not None
    assert seen.first.distances[0] < EXACT < seen.first.distances[1], "draft 1 reads no mask row"


@pytest.mark.matrix
@pytest.mark.parametrize("name", [name for name in CPU if name != "adaptive"])
def test_every_other_case(models, tmp_path, name):
    outcome = run_case(name, CPU[name], models, tmp_path, 40, [], False)
    assert outcome.ok and outcome.compared.drafts_equal == 1, str(outcome)
