"""Entry point `sglang.srt.plugins`: runs in the main process and in every scheduler process; idempotent."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from peagle_core.errors import InputError
from sglang_backend import cpu


@functools.cache
def register() -> None:
    """Make SGLang know PEAGLE and, where they were asked for, the CPU reference platform and the dump of states."""
    _say_input_errors_in_one_line()
    from sglang_backend import algorithm, hooks
    from sglang_backend.patching import install, lacks

    if cpu.selected():
        from sglang_backend.cpu.attention import register_backend
        from sglang_backend.cpu.hooks import CPU_HOOKS

        register_backend()
        install(CPU_HOOKS)
    algorithm.register()
    install(hooks.HOOKS)
    directory = os.environ.get("PEAGLE_STATES_DIR")
    if directory and (missing := install(hooks.dump_hooks(Path(directory).absolute()))):
        sys.exit(f"peagle: {lacks(missing[0])}")  # the hook that would refuse may be the one that is missing


def _say_input_errors_in_one_line() -> None:
    """End a process whose refusal nobody caught with its sentence, not with a traceback."""
    previous = sys.excepthook

    def hook(kind, error, traceback):
        if issubclass(kind, InputError):
            print(f"peagle: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
