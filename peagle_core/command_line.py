"""What all commands have in common: how they read their options, and how they speak of themselves."""

from __future__ import annotations

import argparse
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Parse a command's options, which must be given whole; subcommands get the same class.

    argparse takes the beginning of an option for it: `--to DIR` of one command was `--tokenizer DIR` in another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})


def shown_as(text: str | None, module: str, prog: str) -> str:
    """Return a command's description with every `module` ("python -m trainer") as it was called: `prog`.

    That is `peagle train` where it was called so, `python -m trainer train` in a checkout.
    """
    text = (text or "").replace(module, prog)
    if prog.startswith("peagle"):  # torchrun starts a module: -m peagle train
        text = text.replace(module.removeprefix("python "), f"-m {prog}")
    return text
