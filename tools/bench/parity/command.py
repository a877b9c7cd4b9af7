"""The command line: which cases, on what; a line for each, and report.json."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaForCausalLM

from peagle_core.atomic import new_file
from peagle_core.checkpoint import load_drafter
from peagle_core.errors import InputError
from tools import prefork
from tools.bench.parity.cases import Case, choose
from tools.bench.parity.compare import Compared, compare, recorded_passes
from tools.bench.parity.models import save_models
from tools.bench.serve.results import machine, versions
from tools.server import Server, ask_all, cpu_environment, serve

LENGTHS = (1, 3, 40, 63, 64, 65, 150, 200)  # of prompts: a page and a chunk end before, on and behind 64
AT_A_TIME = (1, 2, 5)  # the table of adaptive K has a K for each of them
FEWEST = 50  # passes that a case must have compared


@dataclass(frozen=True)
class Outcome:
    """One case. accept_length: tokens a step, as simulated; no_masks: prefills without room for mask rows."""

    name: str
    what: str
    start_seconds: float
    accept_length: float
    steps: int
    passes: int
    no_masks: int
    compared: Compared

    @property
    def ok(self) -> bool:
        return self.compared.first is None and self.steps == self.passes and self.compared.passes >= FEWEST

    def __str__(self) -> str:
        seen = self.compared
        counts = ", ".join(f"{n} of K = {k}" for k, n in seen.by_k.items())
        line = (
            f"{self.name}: {'ok' if self.ok else 'NOT OK'}: {seen.passes} passes ({counts}; {seen.after_prefill} after "
            f"prefills; batches of {', '.join(map(str, seen.by_batch))}), relative distance of logits "
            f"{seen.median:.2g} in the median and {seen.largest:.2g} at most, {seen.drafts_equal:.1%} of drafts equal, "
            f"{self.accept_length:.2f} tokens a step, {self.passes} drafter passes in {self.steps} steps"
        )
        if seen.taken_back:
            line += f", {seen.taken_back} passes left out, as retraction took their tokens back"
        if self.no_masks:
            line += f", {self.no_masks} prefills without mask rows"
        if seen.passes < FEWEST:
            line += f"; fewer than {FEWEST} passes prove nothing"
        return line if seen.first is None else f"{line}\n  first difference: {seen.first}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", metavar="NAME", help="a case; repeat it (all of this machine)")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens of each answer (40)")
    parser.add_argument("--server-args", default="", metavar="ARGS", help="for SGLang, as one text, after the case's")
    parser.add_argument(
        "--output", type=Path, default=Path("build/parity"), help="directory for models, logs, records (build/parity)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve and compare every case -> 0, or 1 where one is not ok. Raises InputError where none can be served."""
    on_gpu = os.environ.get("SGLANG_PLATFORM") != "peagle_cpu"
    if on_gpu and not torch.cuda.is_available():
        raise InputError("there is no GPU here; SGLANG_PLATFORM=peagle_cpu compares on the CPU platform")
    cases = choose(args.case, on_gpu)
    good = True
    if on_gpu:  # it says itself what differs; the cases are served all the same
        good = subprocess.run([sys.executable, "-m", "sglang_backend.kernel_check"], check=False).returncode == 0
    models = args.output / "models"
    if not (models / "other/config.json").is_file():
        save_models(models, large=on_gpu)
    report: dict[str, Any] = {"machine": machine(), "versions": versions(), "cases": []}
    for name, case in cases.items():
        outcome = run_case(name, case, models, args.output, args.new_tokens, shlex.split(args.server_args), on_gpu)
        print(outcome, flush=True)
        good &= outcome.ok
        report["cases"].append({"ok": outcome.ok, **asdict(outcome)})
        with new_file(args.output / "report.json") as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if good else 1


def run_case(
    name: str, case: Case, models: Path, output: Path, new_tokens: int, more: list[str], on_gpu: bool
) -> Outcome:  # fmt: skip
    """Serve a case, ask at several requests at a time, and compare what was recorded. Raises InputError."""
    directory = output / name
    directory.mkdir(parents=True, exist_ok=True)
    records = directory / "passes"
    for old in records.glob("pass-*"):
        old.unlink()
    extra = {
        "PEAGLE_RECORD_DIR": str(records), "SGLANG_SIMULATE_ACC_LEN": str(case.accept_length),
        "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token", "HF_HUB_OFFLINE": "1", **case.environment,
    }  # fmt: skip
    environment = {**os.environ, **extra} if on_gpu else cpu_environment(**extra)
    began = perf_counter()
    try:
        arguments = [*case.command(models, directory), *more]
        log, start = directory / "log", prefork.start
        with serve(models / "target", log, *arguments, environment=environment, start=start) as server:
            seconds = perf_counter() - began
            texts, accept_length = _ask(server, models, new_tokens)
            counters = server.counters()
    except RuntimeError as error:
        raise InputError(f"case {name}: {error}") from None
    (directory / "texts.json").write_text(json.dumps(texts))  # with the records all that a later look needs
    device = "cuda" if on_gpu else "cpu"
    target = LlamaForCausalLM.from_pretrained(models / "target", dtype=torch.float32).eval().to(device)
    drafter = load_drafter(models / case.head).float().to(device)
    no_masks = counters["prefills_without_masks"]
    compared = compare(recorded_passes(records), texts, target, drafter, case.limit, first_slot_alone=no_masks > 0)
    return Outcome(
        name, case.what, seconds, accept_length, counters["decode_steps"], counters["decode_drafter_passes"], no_masks,
        compared,
    )  # fmt: skip


def _ask(server: Server, models: Path, new_tokens: int) -> tuple[dict[str, tuple[int, list[int]]], float]:
    """Ask everything at each number of requests at a time -> (what `compare` reads of texts, tokens a step)."""
    vocab = json.loads((models / "target/config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, vocab, (n,), generator=generator).tolist() for n in LENGTHS]
    prompts += [[*prompts[-1], 7, 8, 9], prompts[3]]  # a prefix that is known, and a prompt that is
    texts, tokens, steps = {}, 0, 0
    for at_a_time in AT_A_TIME:
        for prompt, answer in zip(prompts, ask_all(server, prompts, new_tokens, at_a_time), strict=True):
            texts[answer["meta_info"]["id"]] = len(prompt), prompt + answer["output_ids"]
            tokens += len(answer["output_ids"]) - 1  # the first is the prefill's
            steps += answer["meta_info"]["spec_verify_ct"]
    return texts, tokens / max(1, steps)
