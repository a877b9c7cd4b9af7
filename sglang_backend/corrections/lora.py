"""LoRA adapters under PEAGLE: on the target, as with SGLang's EAGLE-3. The drafter runs without, on the adapted states.

SGLang admits its own algorithms to LoRA by name. What they need of an algorithm is that a verification has the same
number of rows for every request, which holds for a chain of K drafts.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.environ import envs

from peagle_core.errors import InputError
from sglang_backend import NAME


def let_peagle_in(check: Callable, server_args) -> None:
    """Admit PEAGLE, AROUND check_lora_speculative_compatibility, with SGLang's own exceptions. Raises InputError."""
    arguments = resolving_view(server_args)
    if arguments.speculative_algorithm != NAME:
        check(server_args)
    elif arguments.speculative_adaptive:
        raise InputError("LoRA adapters need one K: drop --speculative-adaptive")
    elif envs.SGLANG_ENABLE_OVERLAP_PLAN_STREAM.get():
        raise InputError("LoRA adapters do without SGLANG_ENABLE_OVERLAP_PLAN_STREAM: unset it")
