"""python -m tools.questions {gsm8k,docstrings,sampled} --to FILE: questions for `python -m trainer regenerate`.

    python -m tools.questions gsm8k grade-school-math/train.jsonl --to maths.jsonl
    python -m tools.questions docstrings --most 1500 --to code.jsonl
    python -m tools.questions sampled --target TARGET --url http://127.0.0.1:30000/v1 --most 1000 --to chat.jsonl

Each writes one {"messages": [{"role": "user", "content": QUESTION}]} a line, no question twice, in an order shuffled
with --seed, so that --most takes a fair sample.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from peagle_core.atomic import replace_file
from peagle_core.command_line import CommandParser
from peagle_core.errors import InputError, run_command


def main(arguments: list[str] | None = None) -> int:
    """Write the questions. Returns the exit code; bad input is told in one line."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _write(options))


def _write(options: argparse.Namespace) -> None:
    questions = shuffled(_questions(options), options.seed)
    kept = questions if options.most is None else questions[: options.most]
    lines = [json.dumps({"messages": [{"role": "user", "content": question}]}) for question in kept]
    options.to.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.to, "".join(f"{line}\n" for line in lines).encode())
    print(f"{options.to}: {len(kept)} questions of {len(questions)}")


def shuffled(questions: Iterable[str], seed: int) -> list[str]:
    """Return the questions without repetitions, in an order that depends on them and on `seed` alone."""
    once = list(dict.fromkeys(questions))
    random.Random(seed).shuffle(once)
    return once


def _questions(options: argparse.Namespace) -> Iterable[str]:
    if options.source == "gsm8k":
        from tools.questions.gsm8k import gsm8k_questions

        return gsm8k_questions(options.file)
    if options.source == "docstrings":
        from tools.questions.docstrings import docstring_questions

        return docstring_questions()
    from tools.questions.sampled import sampled_questions, user_prefix
    from trainer.target.load import load_tokenizer

    tokenizer = load_tokenizer(options.target)
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(f"{options.target}: has no tokenizer with a chat template")
    prefix = user_prefix(tokenizer, options.system)
    return sampled_questions(prefix, options.samples or options.most or 1000, options.url, options.temperature,
                             options.seed)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tools.questions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sources = parser.add_subparsers(dest="source", required=True)
    common = CommandParser(add_help=False)
    common.add_argument("--to", type=Path, required=True, help="the .jsonl file to write")
    common.add_argument("--most", type=int, help="keep so many questions (default: all)")
    common.add_argument("--seed", type=int, default=0, help="of the order and of sampling (default: 0)")
    gsm8k = sources.add_parser("gsm8k", parents=[common], help="the questions of a GSM8K file")
    gsm8k.add_argument("file", type=Path, help="its train.jsonl, from github.com/openai/grade-school-math")
    sources.add_parser("docstrings", parents=[common], help="code questions made of Python's standard library")
    sampled = sources.add_parser("sampled", parents=[common], help="what the target asks where the user would speak")
    sampled.add_argument("--target", required=True, help="the model whose chat template is used")
    sampled.add_argument("--url", default="http://127.0.0.1:30000/v1", help="a server of it (default: %(default)s)")
    sampled.add_argument("--system", help="a system message, for example to ask for a kind of question")
    sampled.add_argument("--samples", type=int, help="how many to draw (default: --most); some are no questions")
    sampled.add_argument("--temperature", type=float, default=1.0, help="of sampling (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
