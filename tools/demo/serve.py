"""Serve the real target alone, with its EAGLE-3 and with its P-EAGLE head, by the benchmark `tools.bench serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from peagle_core.cpu import fast_dtype
from tools.bench.serve.command import measure
from tools.bench.serve.contenders import EAGLE3, PEAGLE, Launch
from tools.bench.serve.datasets import Question, read_dataset
from tools.bench.serve.prompts import prompt_writer
from tools.bench.serve.results import Results
from tools.bench.serve.study import Study

NAME = "smollm2-135m"
PROMPTS = Path(__file__).with_name("prompts.jsonl")
CONCURRENCY = (1, 4)
# Four requests of this demo need 2,048 tokens; more only costs memory. On a CPU a step runs while it is launched, so
# overlap only shows every token a step later; SGLang has EAGLE3 do without it there, so all three do.
SERVER = ("--max-total-tokens", "4096", "--max-running-requests", "4", "--context-length", "1024",
          "--disable-overlap-schedule", "--log-level", "warning", "--sleep-on-idle")  # fmt: skip


@dataclass(frozen=True)
class Amount:
    """asked: of the 48 prompts, the kinds in turn; alone: how many of them one at a time, which takes longest."""

    num_draft_tokens: tuple[int, ...]
    asked: int
    alone: int
    new_tokens: int
    samples: int


MEASURED = Amount(num_draft_tokens=(3, 5), asked=9, alone=9, new_tokens=256, samples=3)
# Enough to see whether outputs are equal: a verification of 8 rows, alone and beside others.
COMPARED = Amount(num_draft_tokens=(7,), asked=4, alone=2, new_tokens=24, samples=0)


def serve(target: Path, heads: Path, directory: Path) -> list[Results]:
    """Measure the target with the heads in `heads`; report.html and its companions are written into `directory`.

    In the dtype that is fast on this CPU. Where that is bfloat16, in which a batch of another size may round
    otherwise, a shorter run in float32 follows, in directory/float32: there all outputs are to be equal.
    """
    dtype, why = fast_dtype(torch.cpu.get_capabilities())
    print(f"dtype: {dtype}, for the CPU {why}", flush=True)
    found = [measure(demo_study(target, heads, dtype, MEASURED), directory)]
    if dtype != "float32":
        print("\nthe same in float32, shorter: are all outputs equal?", flush=True)
        found.append(measure(demo_study(target, heads, "float32", COMPARED), directory / "float32"))
    return found


def demo_study(target: Path, heads: Path, dtype: str, amount: Amount) -> Study:
    """Return what the demo measures: greedy answers, whole up to a length, to prompts of our own, from every server."""
    questions = demo_questions()[: amount.asked]
    return Study(
        servers=Launch(
            target,
            {EAGLE3: heads / f"{NAME}-eagle3", PEAGLE: heads / f"{NAME}-p-eagle"},
            amount.num_draft_tokens,
            ("--dtype", dtype, *SERVER),
        ),
        questions={"demo prompts": questions},
        writer=prompt_writer(str(target), raw=False),
        sampling={"max_new_tokens": amount.new_tokens, "temperature": 0},
        concurrency=CONCURRENCY,
        samples=amount.samples,
        workload=f"SmolLM2-135M-Instruct: {len(questions)} prompts (chat, code, maths; {amount.alone} of them one at a"
        f" time) x at most {amount.new_tokens} greedy tokens, chat template, {dtype}",
        alone=amount.alone,
    )


def demo_questions() -> list[Question]:
    """Return the 48 prompts of prompts.jsonl, written for this demo: no head was trained on them."""
    return read_dataset(f"demo prompts={PROMPTS}", None, 1)
