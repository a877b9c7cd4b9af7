"""Entry point `sglang.srt.plugins`: runs in the main process and in every scheduler process; idempotent."""

from __future__ import annotations

import functools
import sys

from peagle_core.errors import InputError
from sglang_backend import cpu


@functools.cache
def register() -> None:
    """Make SGLang know PEAGLE and, where it was chosen, the CPU reference platform."""
    from sglang_backend import algorithm, head_config
    from sglang_backend.corrections import (
        adaptive,
        context_limit,
        draft_memory,
        gemma_states,
        lora,
        refused_requests,
        weight_updates,
    )
    from sglang_backend.dump import hidden_states

    algorithm.register()
    adaptive.install()
    context_limit.install()
    draft_memory.install()
    gemma_states.install()
    head_config.install()
    lora.install()
    refused_requests.install()
    weight_updates.install()
    hidden_states.install()
    _report_counters()
    _say_input_errors_in_one_line()
    if cpu.selected():
        from sglang_backend.cpu import attention, mxfp4, torch_kernels
        from sglang_backend.cpu.platform import ATTENTION_BACKEND

        torch_kernels.install()
        mxfp4.install()
        attention.install(ATTENTION_BACKEND)


def _report_counters() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    def add_counters(result, internal_state, state):
        from sglang_backend.worker import add_counters

        return add_counters(result, internal_state, state)

    target = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController._add_speculative"
    HookRegistry.register(target, add_counters, HookType.AFTER)


def _say_input_errors_in_one_line() -> None:
    """A refusal that nobody caught ends the process with its sentence, not with a traceback."""
    previous = sys.excepthook

    def hook(kind, error, traceback):
        if issubclass(kind, InputError):
            print(f"peagle: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
