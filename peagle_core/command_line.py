"""How a command speaks of itself: `peagle convert` where it was called so, `python -m tools.convert` in a checkout."""

from __future__ import annotations


def shown_as(text: str | None, module: str, prog: str) -> str:
    """Return a command's description with every `module` ("python -m trainer") as it was called: `prog`."""
    text = (text or "").replace(module, prog)
    if prog.startswith("peagle"):  # torchrun starts a module: -m peagle train
        text = text.replace(module.removeprefix("python "), f"-m {prog}")
    return text
