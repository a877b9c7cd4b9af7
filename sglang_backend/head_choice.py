"""What `--speculative-draft-model-path` may name: looked at BEFORE SGLang does, so that the sentence is ours."""

from __future__ import annotations

from pathlib import Path

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

from peagle_core.config import PEagleConfig
from peagle_core.config_formats import DEFAULT_SPECULATIVE_TOKENS, load_config_dict
from peagle_core.errors import InputError
from peagle_core.head_directory import head_directory
from peagle_core.serve_command import sglang_arguments
from sglang_backend import NAME

AUTOREGRESSIVE = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE")  # SGLang's algorithms that would take a P-EAGLE head


def choose_head(server_args) -> None:
    """Resolve a head to one directory, for checks and serving alike, BEFORE handle_speculative_decoding.

    Raises InputError for what is no P-EAGLE head under PEAGLE, and for a P-EAGLE head under SGLang's EAGLE.
    """
    arguments = resolving_view(server_args)
    algorithm, path = arguments.speculative_algorithm, arguments.speculative_draft_model_path
    if algorithm is None or path is None:
        return
    if algorithm.upper() in AUTOREGRESSIVE:
        _refuse_parallel_head(algorithm, path, arguments.speculative_draft_model_revision)
    if algorithm.upper() != NAME:
        return
    if path == arguments.model_path or _same_directory(path, arguments.model_path):
        raise InputError(f"{path} is the target itself: give --speculative-draft-model-path a P-EAGLE head made for it")
    directory = head_directory(path, arguments.speculative_draft_model_revision)
    _check_kind(directory)
    if str(directory) != path:  # SGLang would look a name on the hub up again, and its revision may have moved on
        declare_resolution(server_args, "peagle", speculative_draft_model_path=str(directory))


def _same_directory(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def _refuse_parallel_head(algorithm: str, path: str, revision: str | None) -> None:
    """SGLang's EAGLE would serve it without a word, at half the acceptance: its first draft alone means something."""
    try:
        config = PEagleConfig.from_pretrained(_config_directory(path, revision))
    except (InputError, OSError, ValueError):
        return  # no P-EAGLE head, or nowhere: SGLang's to read, or to miss
    if not config.autoregressive:
        flags = " ".join(sglang_arguments(path, config.num_depths or DEFAULT_SPECULATIVE_TOKENS, autoregressive=False))
        raise InputError(
            f"{path} is a P-EAGLE head, which --speculative-algorithm {algorithm} cannot serve: serve it with {flags}"
        )


def _config_directory(path: str, revision: str | None) -> Path:
    """Return where the config of a drafter is; on the hub it is all that is fetched. Raises OSError or ValueError."""
    if Path(path).exists():
        return Path(path)
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, "config.json", revision=revision)).parent


def _check_kind(head: Path) -> None:
    """Refuse a broken config, an EAGLE-3 head and a whole model."""
    try:
        config = PEagleConfig.from_pretrained(head)
    except InputError as error:
        if "no mask token id" not in str(error):
            raise
        names = ", ".join(load_config_dict(head).get("architectures") or ["no architecture"])
        raise InputError(
            f"{error}, so {names} is no P-EAGLE head; an EAGLE-3 head is served with --speculative-algorithm EAGLE3"
        ) from None
    if config.autoregressive:
        tokens = config.num_depths or DEFAULT_SPECULATIVE_TOKENS
        flags = " ".join(sglang_arguments(str(head), tokens, autoregressive=True))
        raise InputError(f"{head}: is an EAGLE-3 head (parallel_drafting is false): serve it with {flags}")
