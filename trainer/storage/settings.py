"""Compare the settings that something was made with to those of the run that wants to use it or add to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def refuse_other_settings(place: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ConfigError naming the first setting that differs."""
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise ConfigError(
                f"{place}: was made with {key} = {then.get(key)}, this run has {now.get(key)}; "
                "use the same, choose another place, or remove this one"
            )
