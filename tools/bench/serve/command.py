"""The command line of the benchmark: options to a Study, a Study to files."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peagle_core.errors import InputError, exit_code
from tools.bench.serve.contenders import EAGLE3, PEAGLE, Launch
from tools.bench.serve.datasets import Question, read_dataset
from tools.bench.serve.lengths import read_lengths
from tools.bench.serve.page import write_page
from tools.bench.serve.pictures import draw
from tools.bench.serve.prompts import PromptWriter, prompt_writer
from tools.bench.serve.results import Results
from tools.bench.serve.simulated.sizes import SIZES
from tools.bench.serve.simulated.study import ALONE, prepare_size, size_floors
from tools.bench.serve.study import Study, run_study
from tools.bench.serve.table import text_table, write_csv, write_json

QUIET = ("--log-level", "warning", "--sleep-on-idle")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> tuple[int, ...]:
        found = tuple(int(x) for x in text.split(",") if x)
        if not found or min(found) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers such as 1,4")
        return found

    def positive(text: str) -> int:
        return numbers(text)[0]

    servers = parser.add_argument_group("servers: started here")
    servers.add_argument("--target", type=Path, help="directory of the target model")
    servers.add_argument("--peagle", type=Path, metavar="HEAD", help="directory of a P-EAGLE head")
    servers.add_argument("--eagle3", type=Path, metavar="HEAD", help="directory of an EAGLE-3 head, to compare with")
    servers.add_argument("--k", type=numbers, default=(3, 5, 7), metavar="K,...", help="drafts per step (3,5,7)")
    servers.add_argument("--confidence", type=float, metavar="P",
                         help="PEAGLE verifies those of its K drafts that stand with this probability, as it thinks "
                         "(all): docs/serving.md")  # fmt: skip
    servers.add_argument("--no-plain", action="store_true", help="leave out the server without speculation")
    servers.add_argument(
        "--one-at-a-time", action="store_true", help="never two servers at once: for a GPU that holds one"
    )
    servers.add_argument("--server-args", default="", metavar="ARGS", help='for SGLang, as one text: "--dtype float32"')
    servers.add_argument("--simulate-accept-length", metavar="X",
                         help="SGLang makes up an acceptance of X tokens a step, or of some for each K "
                         "(3=2.6,5=3.2,7=3.6): times of weights that draft nothing useful")  # fmt: skip
    servers.add_argument("--simulate-eagle3-accept-length", metavar="X", help="another one for EAGLE3 (the same)")
    servers.add_argument("--size", metavar="NAME",
                         help=f"no --target, no heads, no --data: random weights of a size ({', '.join(SIZES)}, or a "
                         "target's config.json), heads of 4 layers and of 1, random prompts")  # fmt: skip
    servers.add_argument("--url", action="append", default=[], metavar="URL",
                         help="a server that runs already, instead of --target; repeat it to compare some")  # fmt: skip
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--data", action="append", metavar="[NAME=]FILE", help="a data set; repeat it")
    asked.add_argument("--prompt-tokens", type=positive, default=128, help="of each prompt with --size (128)")
    asked.add_argument("--limit", type=positive, help="questions of each data set, all categories alike (all)")
    asked.add_argument("--max-turns", type=positive, default=2, help="turns of each conversation (2)")
    asked.add_argument("--concurrency", type=numbers, default=(1,), metavar="N,...", help="conversations at a time (1)")
    asked.add_argument("--max-new-tokens", type=positive, default=256, help="tokens of each answer at most (256)")
    asked.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, and outputs can be compared (0)")
    asked.add_argument("--ignore-end", action="store_true", help="every answer goes on to --max-new-tokens")
    asked.add_argument("--raw", action="store_true", help="send questions as they are, without the chat template")
    asked.add_argument("--tokenizer", help="directory of the tokenizer, when it is not the target's own")
    written = parser.add_argument_group("what is written")
    written.add_argument("--output", type=Path, default=Path("build/bench-serve"), help="directory (build/bench-serve)")
    written.add_argument("--samples", type=int, default=2, help="answers of each data set shown step by step (2)")


def run(args: argparse.Namespace) -> None:
    """Measure, then write results.json, results.csv, the pictures and report.html. Raises InputError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_code(signal.SIGTERM)))  # by way of what stops the servers
    if args.size:
        prepare_size(args)
    if not args.data:
        raise InputError("say --data FILE: a data set to ask, or --size NAME for random prompts")
    servers = _servers(args)
    tokenizer = args.tokenizer or (str(args.target) if args.target else _tokenizer_of(args.url[0]))
    writer = prompt_writer(tokenizer, args.raw)
    questions = read_datasets(args.data, args.limit, args.max_turns)
    sampling: dict[str, Any] = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    if args.ignore_end:
        sampling["ignore_eos"] = True
    study = Study(
        servers, questions, writer, sampling, args.concurrency, args.samples, _workload(args, writer, questions),
        alone=ALONE if args.size else None, size=args.size,
    )  # fmt: skip
    results = measure(study, args.output)
    print(text_table(results))
    print(f"\nwritten: {args.output}/report.html, results.json, results.csv and the pictures")


def read_datasets(arguments: Sequence[str], limit: int | None, max_turns: int) -> dict[str, list[Question]]:
    """Read all data sets -> questions by the data set's name. Raises InputError also where two have one name."""
    questions: dict[str, list[Question]] = {}
    for argument in arguments:
        read = read_dataset(argument, limit, max_turns)
        if read[0].dataset in questions:
            raise InputError(f"two data sets are called {read[0].dataset!r}; name them: --data NAME=FILE")
        questions[read[0].dataset] = read
    return questions


def measure(study: Study, directory: Path) -> Results:
    """Run the study and write everything into `directory`.

    results.json and results.csv are on disk after every load; the pictures and the page come at the end, also when an
    error or Ctrl-C ends the study after its first load.
    """
    directory.mkdir(parents=True, exist_ok=True)
    results = None
    try:
        for results in run_study(study, directory):
            write_json(directory / "results.json", results)
            write_csv(directory / "results.csv", results.rows)
    finally:
        if results is not None:
            write_page(directory / "report.html", results, draw(results, directory))
    if results is None:
        raise InputError("nothing was measured: there is no server to ask")
    return results


def _servers(args: argparse.Namespace) -> Launch | tuple[str, ...]:
    heads = {name: head for name, head in ((EAGLE3, args.eagle3), (PEAGLE, args.peagle)) if head}
    if args.url:
        if args.target or heads:
            raise InputError("--url measures servers that run already; --target, --peagle and --eagle3 start others")
        return tuple(args.url)
    if not args.target:
        raise InputError("say --target DIRECTORY (with --peagle HEAD, --eagle3 HEAD or both), or --url of a server")
    for directory in (args.target, *heads.values()):
        if not (directory / "config.json").is_file():
            raise InputError(f"{directory} is not the directory of a model: it has no config.json")
    if not heads and args.no_plain:
        raise InputError("--no-plain without --peagle or --eagle3 leaves nothing to measure")
    arguments = (*QUIET, *shlex.split(args.server_args))
    lengths, eagle3 = args.simulate_accept_length, args.simulate_eagle3_accept_length
    simulated = read_lengths(lengths, {EAGLE3: eagle3} if eagle3 else {}) if lengths else None
    for algorithm, k in ((algorithm, k) for algorithm in heads for k in args.k):
        if simulated:
            simulated.of(algorithm, k)  # refused now, not after the first rounds
    floors = size_floors(args.size, args.k) if args.size else {}
    return Launch(
        args.target, heads, args.k, arguments, not args.one_at_a_time, not args.no_plain, simulated, floors,
        args.confidence,
    )  # fmt: skip


def _tokenizer_of(url: str) -> str:
    from tools.bench.serve.contenders import server_info
    from tools.server import Server

    info = server_info(Server(url.rstrip("/")))
    return str(info.get("tokenizer_path") or info["model_path"])


def _workload(args: argparse.Namespace, writer: PromptWriter, questions: dict[str, list[Question]]) -> str:
    """Say in a sentence what is asked."""
    sets = ", ".join(f"{len(read)} of {name}" for name, read in questions.items())
    how = "greedy" if args.temperature == 0 else f"temperature {args.temperature}"
    end = "exactly" if args.ignore_end else "at most"
    template = "chat template" if writer.templated else "no chat template"
    target = args.target.name if args.target else ", ".join(args.url)
    if args.size:
        target = f"random weights of {args.size}'s size"
    likely = "" if args.confidence is None else f"; PEAGLE verifies drafts of a confidence of {args.confidence} or more"
    return f"{target}: {sets}; {how}, {end} {args.max_new_tokens} tokens an answer, {template}{likely}"
