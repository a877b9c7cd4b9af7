"""`PEagleConfig`: the configuration of a drafter, read from and written to the config.json of a head's directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peagle_core.config_formats import fields_from_dict, load_config_dict, write_flat_config
from peagle_core.drafter_shape import (
    HIDDEN_STATE_DESIGNS,
    MIN_TARGET_LAYERS,
    NUM_AUX_STATES,
    DrafterShape,
    default_aux_layer_ids,
)
from peagle_core.errors import InputError

__all__ = ["HIDDEN_STATE_DESIGNS", "MIN_TARGET_LAYERS", "NUM_AUX_STATES", "PEagleConfig", "default_aux_layer_ids"]


@dataclass(frozen=True)
class PEagleConfig(DrafterShape):
    """A drafter's shape and conventions, see `DrafterShape`; as config.json in any format that exists."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PEagleConfig:
        """Translate one raw config.json. Raises InputError when a key is missing or contradicts another."""
        return cls(**fields_from_dict(raw))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PEagleConfig:
        """Read `directory/config.json`. Raises InputError in one sentence that names the file and the key."""
        directory = Path(directory)
        try:
            return cls.from_dict(load_config_dict(directory))
        except InputError as error:
            message = str(error)
            raise InputError(
                message if str(directory) in message else f"{directory / 'config.json'}: {message}"
            ) from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `directory/config.json` in vLLM's flat format."""
        write_flat_config(self, Path(directory))
