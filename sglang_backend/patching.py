"""How the plugin changes SGLang: hooks, each a row of a table (`hooks.py`, `cpu/hooks.py`).

SGLang's own registry puts them in place once all plugins are loaded. It only logs a hook whose target is gone, and the
server would then be subtly wrong; so `require` looks at each target again when PEAGLE, or the CPU platform, is started.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from peagle_core.errors import InputError

SGLANG = "0.5.23"  # the version that the tables are written for


class Kind(Enum):
    """What is done at a target. The first four are those of SGLang's registry, called as it calls them."""

    BEFORE = "before"  # ours(*args, **kwargs) runs first
    AFTER = "after"  # ours(result, *args, **kwargs) runs next; what it returns, unless None, is the new result
    AROUND = "around"  # ours(original, *args, **kwargs) runs in place of the original
    REPLACE = "replace"  # ours(*args, **kwargs)
    SET = "set"  # the name is given our value, in this module or dictionary alone


@dataclass(frozen=True)
class Hook:
    """One change. until: what SGLang must do for it to go, None if it is for good.

    target: dotted name of a function, a method or, for SET, any name or key of a dictionary. A function that is None,
    for SGLang knows no kernel for the device, is left alone.
    """

    target: str
    kind: Kind
    ours: Any
    why: str
    until: str | None = None

    def found(self) -> Any:
        """Return what stands at the target now. Raises whatever importing it, or looking it up, raises."""
        owner, name = self.place()
        return owner[name] if isinstance(owner, dict) else getattr(owner, name)

    def place(self) -> tuple[Any, str]:
        """Return (module, class or dictionary, name in it) of the target."""
        owner, _, name = self.target.rpartition(".")
        return pkgutil.resolve_name(owner), name


def install(hooks: Iterable[Hook]) -> list[Hook]:
    """Enter hooks into SGLang's registry, which applies them later, and set what is to be set.

    Returns those passed over because their target is missing: a server that does not need them goes on.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    missing = []
    for hook in hooks:
        try:
            if hook.kind is Kind.SET:
                _set(hook)
            elif hook.found() is not None:  # the registry would put the wrapper of a None wherever a None stands
                HookRegistry.register(hook.target, hook.ours, HookType[hook.kind.name])
        except Exception:  # whatever a module of SGLang raises when it is imported
            missing.append(hook)
    return missing


def _set(hook: Hook) -> None:
    owner, name = hook.place()
    if isinstance(owner, dict):
        owner[name] = hook.ours
    elif hasattr(owner, name):
        setattr(owner, name, hook.ours)


def require(hooks: Iterable[Hook]) -> None:
    """Raise InputError, naming the first of the hooks that is not in place."""
    for hook in hooks:
        if not _in_place(hook):
            raise InputError(lacks(hook))


def lacks(hook: Hook) -> str:
    """Return the sentence that ends a server."""
    return (
        f"SGLang {version('sglang')} lacks {hook.target}, or does not let it be hooked; "
        f"this plugin is made for SGLang {SGLANG}"
    )


def _in_place(hook: Hook) -> bool:
    try:
        found = hook.found()
    except Exception:
        return False
    if found is None and hook.kind is not Kind.SET:
        return True  # nothing there to call
    return any(part is hook.ours for part in _layers(found))


def _layers(found: Any) -> Iterator[Any]:
    """Yield a function, what its wrappers wrap, and what they call: the registry's closures hold our functions."""
    while found is not None:
        yield found
        yield from _held(found)
        found = getattr(found, "__wrapped__", None)


def _held(function: Callable) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue
