"""python -m trainer {prepare,regenerate,extract,train,eval,export}: train a P-EAGLE drafter, measure it, save it.

    python -m trainer prepare target=meta-llama/Llama-3.1-8B-Instruct data.train=answers.jsonl --to tokens
    python -m trainer regenerate target=meta-llama/Llama-3.1-8B-Instruct data.train=chats.jsonl --to answers.jsonl
    python -m trainer extract --config run.yaml --to states
    python -m trainer train target=meta-llama/Llama-3.1-8B-Instruct data.train=answers.jsonl
    python -m trainer train --config run.yaml states.source=cache states.directory=states
    python -m trainer train --config run.yaml optim.lr=1e-4 drafter.num_hidden_layers=2
    python -m trainer train --config run.yaml --resume
    python -m trainer train --config trainer/configs/recipes/qwen3-8b.yaml --dry-run
    torchrun --nproc-per-node 8 -m trainer train --config run.yaml
    python -m trainer eval  --config runs/Llama-3.1-8B-Instruct-peagle/run.yaml eval.num_draft_tokens=[5]

Every setting is a key of the configuration; a commented one is trainer/configs/example.yaml.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from peagle_core.command_line import CommandParser, shown_as
from peagle_core.errors import InputError, exit_code, run_command

if TYPE_CHECKING:
    from trainer.config import RunConfig

# A verb returns the signal that stopped it early, which it has dealt with, or None.
Verb = Callable[[argparse.Namespace], signal.Signals | None]


def main(arguments: list[str] | None = None, prog: str = "python -m trainer") -> int:
    """Return the exit code: 0, 1 (failed), 2 (wrong configuration), 128 + the signal that stopped a run.

    prog: how the command was called, for --help.
    """
    parser = _parser(prog)
    options, more = parser.parse_known_args(arguments)
    if unknown := [text for text in more if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.verb == "train" and options.gpus < 1:
        parser.error("--gpus must be at least 1")
    options.overrides += more  # argparse takes them in one place only; here they may follow an option
    if os.environ.get("RANK", "0") != "0":
        os.environ["TQDM_DISABLE"] = "1"  # one progress bar, that of the first process
    # Imported late, for torch takes seconds to load and --help should not.
    from trainer.parallel import processes

    def work() -> int:
        with processes.process_group():
            try:
                return _run(options)
            except (InputError, OSError) as error:
                raise processes.send_error(error) from None

    return run_command(work, speaks=lambda error: processes.is_main() or not processes.known_to_all(error))


def _run(options: argparse.Namespace) -> int:
    from trainer.errors import ConfigError
    from trainer.parallel import processes

    if processes.size() > 1 and options.run not in PARALLEL_VERBS:
        raise ConfigError(f"{options.verb} is for one process; only train and eval take torchrun")
    stopped = options.run(options)
    return exit_code(stopped) if stopped else 0


def _prepare(options: argparse.Namespace) -> None:
    if options.show:
        from trainer.prepare.show import show_records

        show_records(_config(options), options.show)
        return
    from trainer.prepare.prepare import run_prepare

    run_prepare(_config(options), options.to)


def _regenerate(options: argparse.Namespace) -> signal.Signals | None:
    from trainer.regenerate.regenerate import run_regenerate

    return run_regenerate(_config(options), options.to)


def _extract(options: argparse.Namespace) -> None:
    from trainer.hidden_states.extract import run_extract

    run_extract(_config(options), options.to, options.yes)


def _train(options: argparse.Namespace) -> signal.Signals | None:
    if options.dry_run:
        from trainer.sizing.dry_run import dry_run

        dry_run(_config(options, needs_data=False), options.gpus)
        return None
    from trainer.train.run import run_train

    return run_train(_config(options), options.resume)


def _eval(options: argparse.Namespace) -> None:
    from trainer.train.run import run_eval

    run_eval(_config(options), options.head)


def _export(options: argparse.Namespace) -> None:
    from trainer.export.export import run_export

    run_export(_config(options), options.checkpoint, options.to, options.verify)


def _config(options: argparse.Namespace, needs_data: bool = True) -> RunConfig:
    from trainer.config import load_config

    return load_config(options.config, options.overrides, needs_data)


PARALLEL_VERBS = (_train, _eval)


def _path(text: str) -> Path:
    """Return the path, from a home directory where it begins with ~ (a shell leaves it in --to=~/x)."""
    return Path(text).expanduser()


def _parser(prog: str) -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    configs = os.path.relpath(Path(__file__).with_name("configs"))
    described = shown_as(__doc__, "python -m trainer", prog).replace("trainer/configs", configs)
    parser = CommandParser(prog=prog, description=described, formatter_class=plain)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{prepare,regenerate,extract,train,eval,export}")
    common = CommandParser(add_help=False)
    common.add_argument("--config", type=_path, help="YAML file; without it only the overrides count")
    common.add_argument("overrides", nargs="*", metavar="key=value", help="for example optim.lr=1e-4 (values are YAML)")

    def verb(name: str, run: Verb, text: str) -> argparse.ArgumentParser:
        more = f"{text[0].upper()}{text[1:]}.\nEvery setting is a key; {configs}/example.yaml explains them."
        added = verbs.add_parser(name, parents=[common], help=text, description=more, formatter_class=plain)
        added.set_defaults(run=run)
        return added

    prepare = verb("prepare", _prepare, "tokenise data.train once, into a directory of shards")
    prepare.add_argument("--to", type=_path, help="directory to write (default: output_dir/data)")
    prepare.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print the first N records, what of them is supervised, no more",
    )
    regenerate = verb("regenerate", _regenerate, "replace the answers in data.train by the target's own, from a server")
    regenerate.add_argument("--to", type=_path, help="the .jsonl file to write (default: output_dir/answers.jsonl)")
    extract = verb("extract", _extract, "the target's hidden states of all data, to disk")
    extract.add_argument("--to", type=_path, help="directory to write (default: states.directory)")
    extract.add_argument("--yes", action="store_true", help="do not ask, however much it takes on the disk")
    train = verb("train", _train, "train a drafter, save output_dir/head and measure it")
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in output_dir")
    train.add_argument("--dry-run", action="store_true", help="check all sizes and estimate memory and time, no more")
    train.add_argument("--gpus", type=int, default=1, metavar="N", help="of --dry-run: GPUs of one machine")
    evaluate = verb("eval", _eval, "acceptance length and accuracy of a head")
    evaluate.add_argument("--head", type=_path, help="a head directory or a checkpoint (default: output_dir/head)")
    export = verb("export", _export, "make a head directory from a training checkpoint")
    export.add_argument("--checkpoint", type=_path, help="default: the newest in output_dir")
    export.add_argument("--to", type=_path, help="directory to write (default: output_dir/head)")
    export.add_argument("--verify", action="store_true", help="serve two prompts from the exported files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
