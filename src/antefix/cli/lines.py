"""Plain lines and tables on the terminal, in which no path or message is read as markup."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from antefix.training import report

STYLES = {"error": "bold red", "stopped": "bold yellow"}
INTERRUPTED = 130


def say(what: str, sentence: str, console: Console | None = None) -> None:
    """Print how a command ended, by default to standard error."""
    line = Text.assemble((f"{what}:", STYLES[what]), f" {sentence}")
    (console or Console(stderr=True)).print(line, soft_wrap=True)


@contextmanager
def stopping(console: Console | None = None, going_on: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn Ctrl-C into a line that says how to go on, if that is possible, and the exit status of an interrupt."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        say("stopped", f"interrupted{going_on()}.", console)
        raise typer.Exit(INTERRUPTED) from interrupt


def list_files(paths: Iterable[Path | None], console: Console) -> None:
    """Print the paths of the files that were written."""
    for path in paths:
        if path is not None:
            console.print(Text(f"  {path}"), soft_wrap=True)


def print_table(table: report.Table, console: Console, title: str | None = None) -> None:
    """Print a heading and rows of text; columns that hold only numbers are aligned on the right."""
    heading, rows = table
    printed = Table(title=f"\n{escape(title)}" if title else None, title_justify="left")
    for number, column in enumerate(heading):
        is_numbers = all(row[number][:1] in "+-0123456789" for row in rows)
        printed.add_column(Text(column), justify="right" if is_numbers else "left", overflow="fold")
    for row in rows:
        printed.add_row(*map(Text, row))
    console.print(printed)
