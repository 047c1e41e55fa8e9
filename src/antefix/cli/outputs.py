"""What a command may write over: its own kind of thing, and nothing else that lies there."""

from __future__ import annotations

from pathlib import Path

from antefix.errors import ConfigError, PrefixFormatError
from antefix.peft_format import CONFIG_NAME
from antefix.storage import load_prefix


def check_replaceable_file(path: Path) -> None:
    """Raise `ConfigError` where a prefix would be written over a file that is none."""
    if not path.exists():
        return
    try:
        load_prefix(path)
    except PrefixFormatError as error:
        raise ConfigError(f"'{path}' holds no prefix, so it is not replaced; name another file.") from error


def check_replaceable_folder(path: Path) -> None:
    """Raise `ConfigError` where a checkpoint of PEFT would be written among other things."""
    if path.is_dir() and any(path.iterdir()) and not (path / CONFIG_NAME).is_file():
        raise ConfigError(f"'{path}' holds other things than a checkpoint of PEFT; name a folder of its own.")
