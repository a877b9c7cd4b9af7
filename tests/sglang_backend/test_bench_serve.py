"""`tools.bench serve` against real servers: it accepts what the reference loop accepts, on every kind of data.

Also that SGLang tells the same of itself through its other doors, which sglang.bench_serving and AIPerf read.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from prompts import TRAINED
from transformers import AutoTokenizer, LlamaForCausalLM

from peagle_core.checkpoint import load_drafter
from peagle_core.generate import Speculation, speculate
from tools.bench.serve.command import measure, read_datasets
from tools.bench.serve.contenders import Fleet, Launch
from tools.bench.serve.metrics import acceptance
from tools.bench.serve.prompts import PromptWriter
from tools.bench.serve.results import Results
from tools.bench.serve.study import Study

pytestmark = pytest.mark.slow
K, LENGTH = 5, 40
ARGUMENTS = ("--dtype", "float32", "--max-total-tokens", "4096", "--log-level", "warning", "--sleep-on-idle")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
DATA = {
    "mt.jsonl": [{"category": c, "turns": [f"A question on {c}?", "And then?"]} for c in ("a", "b", "c", "d")],
    "HumanEval.jsonl": [{"task_id": i, "prompt": f"def f{i}(x):\n    "} for i in range(4)],
    "gsm8k.jsonl": [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(4)],
    "known.jsonl": [{"input_ids": prompt} for prompt in TRAINED],
}


def reference(models: Path, writer: PromptWriter, study: Study, dataset: str) -> list[Speculation]:
    """The same conversations held with the reference loop."""
    target, drafter = LlamaForCausalLM.from_pretrained(models / "target").eval(), load_drafter(models / "overfit")
    said = []
    for question in study.questions[dataset]:
        answers: list[str] = []
        for _ in range(writer.turns(question)):
            prompt = torch.tensor(writer.write(question, answers))
            said.append(speculate(target, drafter, prompt, K, LENGTH))
            answers.append(writer.text(said[-1].output_ids))
    return said


@pytest.fixture(scope="module")
def study(models, tmp_path_factory) -> Study:
    directory = tmp_path_factory.mktemp("data")
    for name, records in DATA.items():
        (directory / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = AutoTokenizer.from_pretrained(models / "target")
    tokenizer.chat_template = TEMPLATE
    launch = Launch(models / "target", {"PEAGLE": models / "overfit"}, (K,), ARGUMENTS)
    questions = read_datasets([str(directory / name) for name in DATA], 4, 2)
    sampling = {"max_new_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
    return Study(launch, questions, PromptWriter(tokenizer, False), sampling, (1, 4), 1, "four of each")


@pytest.fixture(scope="module")
def results(study, tmp_path_factory) -> tuple[Results, Path]:
    directory = tmp_path_factory.mktemp("measured")
    return measure(study, directory), directory


def test_it_accepts_what_the_reference_loop_accepts(models, study, results):
    for dataset, expected in ((name, reference(models, study.writer, study, name)) for name in study.questions):
        rows = [row for row in results[0].rows if row.dataset == dataset]
        assert [(row.concurrency, row.k, row.requests) for row in rows] == [
            (concurrency, k, len(expected)) for concurrency in (1, 4) for k in (0, K)
        ]
        steps = [accepted for said in expected for accepted in said.accept_lengths]
        for row in rows:
            assert row.outputs_equal == 1.0
            assert row.output_tokens == LENGTH * len(expected)
            if row.k:
                assert row.accept_length == pytest.approx(sum(steps) / len(steps), rel=1e-12)
                shares = [sum(n > i + 1 for n in steps) / len(steps) for i in range(K)]
                assert row.accept_per_position == pytest.approx(shares)
                assert row.drafter_passes_per_step == 1.0
                assert row.memory_mib and row.memory_mib > 500
    assert rows[-1].accept_length > 1 + 0.6 * K, "else the comparison says little"


def test_sampled_answers_show_the_reference_loops_drafts(models, study, results):
    samples = {sample.dataset: sample for sample in results[0].samples}
    assert list(samples) == list(study.questions)
    for dataset, sample in samples.items():
        said = reference(models, study.writer, study, dataset)[0]
        taken = sample.steps[1:]
        assert sum(len(step.tokens) for step in sample.steps) == LENGTH
        assert [step.accepted for step in taken[:-1]] == [n - 1 for n in said.accept_lengths[:-1]]
        decode = study.writer.tokenizer.decode
        for step, drafts in zip(taken[:-1], said.draft_tokens[:-1], strict=True):
            assert step.rejected == [decode([d]) for d in drafts[step.accepted :]]


def test_everything_is_written(results):
    names = {path.name for path in results[1].iterdir()}
    pictures = {f"{name}.{kind}" for name in ("speed", "acceptance", "concurrency") for kind in ("png", "svg")}
    assert {"results.json", "results.csv", "report.html"} | pictures <= names


def test_sglang_tells_the_same_through_its_other_doors(models, tmp_path):
    """`return_spec_tokens_details`, which AIPerf reads, and the server's average, which sglang.bench_serving prints."""
    launch = Launch(models / "target", {"PEAGLE": models / "overfit"}, (K,), (*ARGUMENTS, "--decode-log-interval", "1"))
    with Fleet(launch, tmp_path) as fleet:
        server = fleet.open([("PEAGLE", K)])[0].server
        server.flush_cache()  # SGLang's average forgets the request that warmed the server up
        meta = server.generate(TRAINED[3], LENGTH)["meta_info"]
        body = {"model": "m", "prompt": TRAINED[3], "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True}
        details = [
            server.post("/v1/completions", {**body, "return_spec_tokens_details": True})["sglext"],
            _last_details(server.http, {**body, "return_spec_tokens_details": True, "stream": True}),
        ]
        average = server.http.get("/server_info").json()["internal_states"][0]["avg_spec_accept_length"]
    accept_length, _ = acceptance([meta["spec_correct_drafts_histogram"]], K)
    assert accept_length > 3
    for told in details:
        told = told["spec_tokens_details"]
        assert told["spec_correct_drafts_histogram"] == meta["spec_correct_drafts_histogram"]
        assert 1 + told["spec_num_correct_drafts"] / told["spec_verify_ct"] == pytest.approx(accept_length)
        # SGLang's own spec_accept_length counts the prefill's token, and not what a limit cuts off.
        assert told["spec_accept_length"] == pytest.approx(LENGTH / told["spec_verify_ct"])
    assert average == pytest.approx(accept_length, rel=0.02)


def _last_details(http, body: dict) -> dict:
    found = {}
    with http.stream("POST", "/v1/completions", json=body) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                found = json.loads(line[6:]).get("sglext") or found
    return found
