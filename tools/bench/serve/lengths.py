"""Prescribed acceptance: one number, or a number for each K, alike for both algorithms or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peagle_core.errors import InputError


@dataclass(frozen=True)
class Lengths:
    """Tokens a step that SGLang makes up.

    every: by K, 0 for any; of_one: the same by algorithm, where one has its own.
    """

    every: dict[int, float]
    of_one: dict[str, dict[int, float]]

    def of(self, algorithm: str, k: int) -> float:
        """Return the acceptance length of a server. Raises InputError where none is given for its K."""
        lengths = self.of_one.get(algorithm, self.every)
        found = lengths.get(k, lengths.get(0))
        if found is None:
            raise InputError(f"no simulated acceptance length for {algorithm} K={k}; give {k}=LENGTH as well")
        if not 1 <= found <= k + 1:
            raise InputError(f"{algorithm} K={k} accepts 1 to {k + 1} tokens a step, not {found}")
        return found

    def __str__(self) -> str:
        return ", ".join([_said(self.every), *(f"{name} {_said(own)}" for name, own in self.of_one.items())])


def read_lengths(text: str, of_one: Mapping[str, str]) -> Lengths:
    """Read "3.2", or "3=2.6,5=3.2,7=3.6"; of_one: the same by algorithm. Raises InputError."""
    return Lengths(_read(text), {name: _read(own) for name, own in of_one.items()})


def _read(text: str) -> dict[int, float]:
    try:
        if "=" not in text:
            return {0: float(text)}
        return {int(k): float(x) for k, x in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise InputError(f"{text!r} is no acceptance length such as 3.2 or 3=2.6,5=3.2,7=3.6") from None


def _said(lengths: dict[int, float]) -> str:
    return ", ".join(f"{x:g} at K={k}" if k else f"{x:g}" for k, x in lengths.items())
