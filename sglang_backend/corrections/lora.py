"""LoRA adapters under PEAGLE: on the target, as with SGLang's EAGLE-3. The drafter runs without, on the adapted states.

SGLang admits its own algorithms to LoRA by name. What they need of an algorithm is that a verification has the same
number of rows for every request, which holds for a chain of K drafts.
"""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.arg_groups.overrides import resolving_view

from peagle_core.errors import InputError
from sglang_backend import NAME


def check(server_args) -> None:
    """Make SGLang's own exceptions, before any load: its check below comes later. Raises InputError."""
    if not (server_args.enable_lora or server_args.lora_paths):
        return
    if server_args.speculative_adaptive:
        raise InputError("LoRA adapters need one K: drop --speculative-adaptive")


def let_peagle_in(sglangs: Callable, server_args) -> None:
    """Admit PEAGLE AROUND check_lora_speculative_compatibility."""
    if resolving_view(server_args).speculative_algorithm != NAME:
        sglangs(server_args)
