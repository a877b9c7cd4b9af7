"""Serve the demo's target alone, with SGLang's EAGLE3 and with PEAGLE, by the benchmark `tools.bench serve`."""

from __future__ import annotations

from pathlib import Path

from tools.bench.serve.command import measure
from tools.bench.serve.contenders import EAGLE3, PEAGLE, Launch
from tools.bench.serve.datasets import Question
from tools.bench.serve.prompts import PromptWriter
from tools.bench.serve.results import Results
from tools.bench.serve.study import Study
from tools.demo.corpus import heldout_prompts, load_tokenizer, shared_with_training
from tools.demo.head import HEADS

REQUESTS, NEW_TOKENS = 32, 128
NUM_DRAFT_TOKENS = (3, 5, 7)
CONCURRENCY = (1, 4)
DATASET = "held-out files"
SERVER = ("--dtype", "float32", "--max-total-tokens", "16384", "--log-level", "warning", "--sleep-on-idle")


def serve(directory: Path) -> Results:
    """Measure the target and the heads in the demo's directory; report.html and its companions are written there."""
    return measure(demo_study(directory), directory)


def demo_study(directory: Path) -> Study:
    """Return what the demo measures: the same greedy answers, of a fixed length, from every server."""
    prompts = heldout_prompts(directory, REQUESTS)
    heads = {algorithm: directory / HEADS[algorithm.lower()] for algorithm in (EAGLE3, PEAGLE)}
    shared = shared_with_training(directory, prompts)
    return Study(
        servers=Launch(directory / "target", heads, NUM_DRAFT_TOKENS, SERVER),
        questions={DATASET: [Question(DATASET, DATASET, (), input_ids=tuple(prompt)) for prompt in prompts]},
        writer=PromptWriter(load_tokenizer(directory), raw=True),
        sampling={"max_new_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True},
        concurrency=CONCURRENCY,
        samples=3,
        workload=f"{len(prompts)} prompts from held-out files x {NEW_TOKENS} greedy tokens, tiny target trained by this"
        f" demo; the text of {shared} prompts also stands in a training file",
    )
