"""What a command may overwrite: output of its own kind, and nothing else."""

from __future__ import annotations

from pathlib import Path

from antefix.errors import ConfigError, PrefixFormatError
from antefix.peft_format import read_config
from antefix.storage import load_prefix


def check_replaceable_file(path: Path) -> None:
    """Raise `ConfigError` if a prefix would overwrite a file that is not a prefix."""
    if not path.exists():
        return
    try:
        load_prefix(path)
    except PrefixFormatError as error:
        raise ConfigError(f"'{path}' holds no prefix, so it is not replaced; name another file.") from error


def check_replaceable_folder(path: Path) -> None:
    """Raise `ConfigError` if a folder holds anything but the checkpoint of PEFT's prefix tuning to overwrite."""
    if not path.is_dir() or not any(path.iterdir()):
        return
    try:
        read_config(path)
    except PrefixFormatError as error:
        raise ConfigError(
            f"'{path}' holds other things than a checkpoint of PEFT's prefix tuning; name a folder of its own."
        ) from error
