"""A run's configuration from a YAML file (optional) and `key.subkey=value` overrides; unknown keys are refused."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peagle_core.errors import one_line
from trainer.config.run_config import RunConfig
from trainer.errors import ConfigError


def load_config(path: str | Path | None, overrides: list[str], needs_data: bool = True) -> RunConfig:
    """Read a YAML file (None for an empty one) and apply overrides such as "optim.lr=1e-4". Raises ConfigError.

    needs_data False: data.train may be absent (a dry run).
    """
    raw = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(raw, override)
    if not needs_data and isinstance(raw.setdefault("data", {}), dict):
        raw["data"].setdefault("train", [])
    try:
        return RunConfig.model_validate(raw, context={} if needs_data else {"needs_data": False})
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({one_line(error)})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a mapping of keys to values was expected")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
    try:
        raw[last] = _value(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None


def _value(text: str) -> Any:
    """Read a value as YAML does, except that 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""
    if text.startswith("*"):
        return text  # a pattern of files; YAML would take it for an alias
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _sentence(error: ValidationError) -> str:
    # A misspelt key often makes another one "missing": name the misspelling.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}{_suggestion(first['loc'])}"
    if first["type"] == "missing":
        return f"key {(place if place != 'data' else 'data.train')!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    where = f"{place}: " if place else ""
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    return f"{where}{message[0].lower()}{message[1:]}{found}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    model: Any = RunConfig
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys here: {', '.join(model.model_fields)}"
