"""`antefix compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antefix.cli.outputs import check_replaceable_file
from antefix.composition import average, concat
from antefix.errors import ConfigError
from antefix.storage import save_prefix, verify_prefix


def compose(
    prefixes: Annotated[list[Path], typer.Argument(help="Prefix files for the same base model.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    averaged: Annotated[
        bool, typer.Option("--average", help="Average the prefixes token by token, instead of concatenating them.")
    ] = False,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="With --average: how much of each prefix; repeat it in the order of the files."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Keep only these tokens of the result: START:STOP, either may be left out.")
    ] = None,
) -> None:
    """Make a prefix from others: concatenate them, average them, or keep a part."""
    if weight and not averaged:
        raise ConfigError("--weight is for --average; one after another, prefixes have no weights.")
    check_replaceable_file(output)
    part = _part(tokens) if tokens is not None else None
    loaded = [verify_prefix(path) for path in prefixes]
    made = average(loaded, weight or None) if averaged else concat(loaded)
    if part is not None:
        made = made[part]
    save_prefix(made, output)
    typer.echo(f"{output}: {made.num_virtual_tokens} virtual tokens")


def _part(tokens: str) -> slice:
    start, colon, stop = tokens.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(start) if start else None, int(stop) if stop else None)
    except ValueError as error:
        raise ConfigError(f"--tokens is '{tokens}'; it must be START:STOP, such as 0:16 or 1:.") from error
