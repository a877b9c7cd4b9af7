"""K at run time: SGLang's adaptive speculation (`--speculative-adaptive`) under PEAGLE.

SGLang lowers K as batches grow or acceptance falls, by a table of candidate K per batch size. For a parallel drafter
another K is only another number of mask rows. With a `confidence` in the table K follows the drafts at hand instead:
`sglang_backend.confidence`. What SGLang asks of us: to be let in (it lists its own algorithms by
name), and buffers for the largest candidate (`row_budget.largest_num_drafts`).
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config

from peagle_core.errors import InputError
from sglang_backend import NAME
from sglang_backend.confidence import KEY, least_confidence


def let_peagle_in(reason: Callable, server_args) -> str | None:
    """Find no reason against PEAGLE, AROUND adaptive_unsupported_reason, if its table fits. Raises InputError.

    What else SGLang names there, `server_args.UNSUPPORTED` refuses.
    """
    arguments = resolving_view(server_args)
    if arguments.speculative_algorithm != NAME:
        return reason(server_args)
    check_table(arguments)
    return None


def check_table(arguments) -> None:
    """Raise InputError unless the table of `--speculative-adaptive-config` fits PEAGLE."""
    path = arguments.speculative_adaptive_config
    if path is None:
        raise InputError(
            "--speculative-adaptive needs --speculative-adaptive-config under PEAGLE, for SGLang's own table turns "
            'drafting off; e.g. {"1": {"candidate_steps": [3, 5]}, "16": {"candidate_steps": [1]}}'
        )
    try:
        candidates = resolve_candidate_steps_from_config(path)
        least = least_confidence(arguments)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no table for adaptive speculation ({error})") from None
    if min(candidates) < 1:
        raise InputError(f"{path}: PEAGLE drafts at least one token, found candidate_steps {candidates}")
    if arguments.speculative_num_steps not in candidates:
        raise InputError(f"{path}: the K to start with, {arguments.speculative_num_steps}, is not among {candidates}")
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 < least < 1:
        raise InputError(f"{path}: {KEY} must lie between 0 and 1, found {least!r}")
    if arguments.speculative_use_rejection_sampling:
        raise InputError(f"{path}: {KEY} is of greedy drafts; drop it or --speculative-use-rejection-sampling")
