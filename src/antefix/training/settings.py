"""Settings of a run from files and flags: read, checked, and made into a dataclass."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from antefix.errors import ConfigError, on_one_line

MAX_SEED = 2**32 - 1


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file of settings; raises `ConfigError` for anything but a mapping."""
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the recipe '{path}' cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date or number that is none
        raise ConfigError(f"the recipe '{path}' is not valid YAML: {on_one_line(error)}.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the recipe '{path}' must be a mapping of settings to values.")
    return settings


def check_folder(path: Path) -> None:
    """Raise `ConfigError` if a path cannot be a folder to write into, such as one below a file."""
    nearest = next(part for part in (path, *path.absolute().parents) if part.exists())
    if path.is_file():
        raise ConfigError(f"output is '{path}', which is a file; name a folder.")
    if not nearest.is_dir():
        raise ConfigError(f"output is '{path}', but '{nearest}' is a file; name a folder.")
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"output is '{path}', but '{nearest}' may not be written into; name another folder.")


def overridden(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with overrides, if not None, in their place; those of `prefix` are taken one by one."""
    prefix = settings.get("prefix") or {}
    if not isinstance(prefix, Mapping):
        raise ConfigError("'prefix' in a recipe must be a mapping of PrefixConfig's settings to values.")
    prefix = {**prefix, **_given(overrides.get("prefix") or {})}
    return {**settings, **_given(overrides), "prefix": prefix}


def build(cls: type[Any], settings: Mapping[str, Any], where: str, required: Sequence[str] = ()) -> Any:
    """Return a dataclass of settings; raises `ConfigError` for a setting that it does not have or that is missing."""
    known = inspect.signature(cls).parameters
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"{where} has no setting '{unknown[0]}'; it knows {', '.join(known)}.")
    missing = [name for name in required if name not in settings]
    if missing:
        raise ConfigError(f"{where} lacks '{missing[0]}'; say it in the file or as --{missing[0]}.")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ConfigError(f"{where} has a setting of the wrong type: {error}.") from error


def check_types(settings: Any, but: Sequence[str] = ()) -> None:
    """Convert each field of a frozen dataclass to its declared type; raises `ConfigError` if that is not possible.

    YAML reads 1e-3 as text, so a number may be given as text.
    """
    for setting in fields(settings):
        if setting.name not in but:
            value = _typed(setting.name, str(setting.type), getattr(settings, setting.name))
            object.__setattr__(settings, setting.name, value)


def check_above_zero(settings: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these settings is above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; it must be above 0.")


def check_at_least(least: float, settings: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these settings that is given is `least` or more."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{name} is {value!r}; it must be {least:g} or more.")


def check_share(settings: Any, *names: str) -> None:
    """Raise `ConfigError` unless each of these settings is at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; it must be at least 0 and below 1.")


def check_seed(seed: int) -> None:
    """Raise `ConfigError` for a seed that some generator does not take."""
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed is {seed}; it must be from 0 to {MAX_SEED}.")


def _typed(name: str, kind: str, value: Any) -> Any:
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind == "float" and not isinstance(value, bool):
        try:
            if math.isfinite(number := float(value)):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
    elif type(value).__name__ == kind and value != "":
        return value
    wanted = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text"}[kind]
    raise ConfigError(f"{name} is {value!r}; it must be {wanted}.")


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
