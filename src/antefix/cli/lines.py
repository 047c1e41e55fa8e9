"""Plain lines on the terminal, in which no path or message is read as markup."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

STYLES = {"error": "bold red", "stopped": "bold yellow"}


def say(what: str, sentence: str, console: Console | None = None) -> None:
    """Print how a command ended, on the standard error."""
    line = Text.assemble((f"{what}:", STYLES[what]), f" {sentence}")
    (console or Console(stderr=True)).print(line, soft_wrap=True)


def list_files(paths: Iterable[Path | None], console: Console) -> None:
    """Print where files lie that were written."""
    for path in paths:
        if path is not None:
            console.print(Text(f"  {path}"), soft_wrap=True)
