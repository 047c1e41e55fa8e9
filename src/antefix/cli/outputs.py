"""What a command may write over: its own kind of thing, and nothing else that lies there."""

from __future__ import annotations

from pathlib import Path

from antefix.errors import ConfigError, PrefixFormatError
from antefix.peft_format import read_config
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
    """Raise `ConfigError` where a checkpoint of PEFT's prefixes would be written among other things, or over others."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        read_config(path)
    except PrefixFormatError as error:
        raise ConfigError(
            f"'{path}' holds other things than a checkpoint of PEFT's prefix tuning; name a folder of its own."
        ) from error
