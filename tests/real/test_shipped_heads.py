"""The heads in heads/, served for the real target: what is accepted is what the reference loop accepts, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.generate import speculate
from tools.bench.serve.command import measure, read_datasets
from tools.bench.serve.contenders import EAGLE3, NONE, PEAGLE, Launch
from tools.bench.serve.prompts import prompt_writer
from tools.bench.serve.results import Results
from tools.bench.serve.study import Study
from tools.demo.__main__ import HEADS
from tools.demo.serve import NAME, SERVER
from tools.inspect.__main__ import main as inspect
from tools.real_target import build

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3600)]

K, TOKENS, QUESTIONS = 5, 24, 4
SHIPPED = {EAGLE3: HEADS / f"{NAME}-eagle3", PEAGLE: HEADS / f"{NAME}-p-eagle"}
ROOT = HEADS.parent
BENCHMARKS = [ROOT.parent / "shared" / "data" / name
              for name in ("mt_bench_questions.jsonl", "HumanEval.jsonl.gz", "gsm8k_test.jsonl")]  # fmt: skip


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("real") / "smollm2-135m-instruct")


@pytest.fixture(scope="module")
def measured(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Results]]:
    """Four questions of our own file and, where they are at hand, of each of the paper's benchmarks."""
    files = [ROOT / "tools" / "demo" / "prompts.jsonl", *(path for path in BENCHMARKS if path.is_file())]
    study = Study(
        Launch(target, SHIPPED, (K,), ("--dtype", "float32", *SERVER)),
        read_datasets([str(path) for path in files], QUESTIONS, 1),
        prompt_writer(str(target), raw=False),
        {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
        (QUESTIONS,),
        samples=1,
        workload="four questions of each data set",
    )
    yield study, measure(study, tmp_path_factory.mktemp("measured"))


@pytest.mark.parametrize("head", SHIPPED.values(), ids=SHIPPED)
def test_a_shipped_head_fits_the_target(head, target, capsys):
    assert inspect([str(head), "--target", str(target)]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_the_heads_are_small():
    assert sum(path.stat().st_size for head in SHIPPED.values() for path in head.iterdir()) < 60e6


def test_the_server_accepts_what_the_reference_loop_accepts(target, measured):
    study, results = measured
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    drafters = {name: load_drafter(head, torch.float32, model) for name, head in SHIPPED.items()}
    for row in results.rows:
        assert row.outputs_equal == 1.0
        if row.algorithm == NONE:
            continue
        steps: list[int] = []
        for question in study.questions[row.dataset]:
            prompt = torch.tensor(study.writer.write(question, []))
            steps += speculate(model, drafters[row.algorithm], prompt, K, TOKENS).accept_lengths
        assert row.accept_length == pytest.approx(sum(steps) / len(steps), rel=1e-12), (row.algorithm, row.dataset)
    assert {row.algorithm for row in results.rows} == {NONE, EAGLE3, PEAGLE}
