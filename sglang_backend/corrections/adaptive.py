"""K at run time: SGLang's adaptive speculation (`--speculative-adaptive`) under PEAGLE.

SGLang lowers K as batches grow or acceptance falls, by a table of candidate K per batch size. For a parallel drafter
another K is only another number of mask rows. What SGLang asks of us: to be let in (it lists its own algorithms by
name), and buffers for the largest candidate.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config

from peagle_core.errors import InputError


def max_num_draft_tokens(spec) -> int:
    """The largest K that may come up. spec: SGLang's server arguments, or their runtime view."""
    if not spec.speculative_adaptive:
        return spec.speculative_num_steps
    return max(resolve_candidate_steps_from_config(spec.speculative_adaptive_config))


def check_table(server_args) -> None:
    """Raises InputError unless the table of `--speculative-adaptive-config` fits PEAGLE."""
    if not server_args.speculative_adaptive:
        return
    path = server_args.speculative_adaptive_config
    if path is None:
        raise InputError(
            "--speculative-adaptive needs --speculative-adaptive-config under PEAGLE, for SGLang's own table turns "
            'drafting off; e.g. {"1": {"candidate_steps": [3, 5]}, "16": {"candidate_steps": [1]}}'
        )
    try:
        candidates = resolve_candidate_steps_from_config(path)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no table for adaptive speculation ({error})") from None
    if min(candidates) < 1:
        raise InputError(f"{path}: PEAGLE drafts at least one token, found candidate_steps {candidates}")
    if server_args.speculative_num_steps not in candidates:
        raise InputError(f"{path}: the K to start with, {server_args.speculative_num_steps}, is not among {candidates}")


def let_peagle_in(reason: Callable, server_args) -> str | None:
    """AROUND SGLang's adaptive_unsupported_reason; what else it names there, `server_args.UNSUPPORTED` refuses."""
    return None if server_args.speculative_algorithm == "PEAGLE" else reason(server_args)


def install() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    target = "sglang.srt.speculative.adaptive_spec_params.adaptive_unsupported_reason"
    HookRegistry.register(target, let_peagle_in, HookType.AROUND)
