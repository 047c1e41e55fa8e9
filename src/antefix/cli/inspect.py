"""`antefix inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from antefix.cli.evaluate import recipe_settings
from antefix.cli.lines import list_files, print_table
from antefix.errors import ConfigError
from antefix.inspect import tables
from antefix.inspect.contents import contents
from antefix.inspect.report import check_names, write_report
from antefix.inspect.run import inspect_recipe
from antefix.inspect.similarity import similarities
from antefix.training.settings import check_folder
from antefix.training.systems import read_prefixes, recipe_for

_PROGRESS = Console(stderr=True)


def inspect(
    context: typer.Context,
    prefix: Annotated[list[str], typer.Argument(help="Prefix file, or NAME=FILE; name several to compare them.")],
    verify: Annotated[bool, typer.Option("--verify", help="Only check whether the files are intact.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Examples to run the prefixes on: a file, a folder or a dataset, as for train.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model. [default: the one that the prefixes were trained on]")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Template of the prompt. [default: the prefixes']")] = None,
    answer: Annotated[str | None, typer.Option(help="Template of the answer. [default: the prefixes']")] = None,
    messages: Annotated[
        str | None,
        typer.Option(help="Field that holds a conversation, in place of templates. [default: the prefixes']"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="'text' or 'classification'. [default: the prefixes']")] = None,
    answer_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for the answers. [default: the prefixes']")
    ] = None,
    data_config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    data_split: Annotated[str | None, typer.Option(help="Split of a dataset. [default: train]")] = None,
    num_examples: Annotated[
        int | None, typer.Option(min=1, help="Use only this many examples, from the first on.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch.")] = 16,
    output: Annotated[Path | None, typer.Option(help="Folder for inspection.json and heatmaps.")] = None,
) -> None:
    """Show what prefix files hold and, with --data, what they do to attention and loss."""
    prefixes = read_prefixes(prefix)
    if output is not None:
        check_names(prefixes)
    console = Console()
    found = {name: contents(held) for name, held in prefixes.items()}
    given = recipe_settings(context)
    _check_settings(verify, data, output, given)
    if verify:
        for name, one in found.items():
            console.print(Text(f"{name}: intact, SHA-256 of its content {one.content}"), soft_wrap=True)
        return
    matrix = similarities(list(prefixes.values()))
    for name, one in found.items():
        print_table(tables.summary(name, one), console)
        print_table(tables.norms(one), console)
    if len(prefixes) > 1:
        print_table(tables.similar(list(prefixes), matrix), console, "similarity of values")
    inspections = {
        name: inspect_recipe(recipe_for(data, {name: held}, {**given, "batch_size": batch_size}), held, _PROGRESS)
        for name, held in prefixes.items()
        if data is not None
    }
    for name, inspection in inspections.items():
        print_table(tables.losses(inspection), console, f"{name}: loss on {inspection.num_examples:,} examples")
        used = tables.tokens(inspection)
        print_table(used, console, f"{name}: the {len(used[1])} virtual tokens that get most attention")
        print_table(tables.layers(found[name], inspection), console, f"{name}: layers")
    if output is not None:
        list_files(write_report(found, matrix, inspections, output), console)


def _check_settings(verify: bool, data: str | None, output: Path | None, given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that would do nothing, and for an output that is no folder."""
    if verify and (data is not None or output is not None or any(given.values())):
        raise ConfigError("--verify reads the files and does nothing else; leave it out, or all settings of a run.")
    if data is None and any(given.values()):
        raise ConfigError("nothing but --data is run on a model; give it, or leave the settings of a run out.")
    if output is not None:
        check_folder(output)
