"""`antefix evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from antefix.cli.lines import list_files, print_table
from antefix.errors import ConfigError
from antefix.training import report
from antefix.training.bootstrap import PairedBootstrap
from antefix.training.evaluation import evaluate_recipe
from antefix.training.settings import check_folder
from antefix.training.systems import SHARED_SETTINGS, System, read_prefixes, read_texts, recipe_for
from antefix.training.templates import unescape


def evaluate(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="Examples: a file, a folder or a dataset, as for train.")],
    model: Annotated[
        str | None, typer.Option(help="Base model. [default: the one that the prefixes were trained on]")
    ] = None,
    prefix: Annotated[list[str] | None, typer.Option(help="Prefix file, or NAME=FILE; repeat it for several.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A text to put before each prompt instead of a prefix, or a file with one; repeat it for several."
        ),
    ] = None,
    base: Annotated[bool, typer.Option(help="Also evaluate the bare base model, first.")] = True,
    prompt: Annotated[str | None, typer.Option(help="Template of the prompt. [default: the prefixes']")] = None,
    answer: Annotated[str | None, typer.Option(help="Template of the answer. [default: the prefixes']")] = None,
    messages: Annotated[
        str | None,
        typer.Option(help="Field that holds a conversation, in place of templates. [default: the prefixes']"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="'text' or 'classification'. [default: the prefixes']")] = None,
    answer_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for the answers, if it is not the model's.")
    ] = None,
    data_config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    data_split: Annotated[str | None, typer.Option(help="Split of a dataset. [default: train]")] = None,
    num_examples: Annotated[
        int | None, typer.Option(min=1, help="Use only this many examples, from the first on.")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="Metric to compute; repeat it. [default: all that the task has]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per batch, over all systems together.")] = 16,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum tokens to write. [default: as many as the longest expected answer]"),
    ] = None,
    num_resamples: Annotated[int, typer.Option(min=1, help="Resamples of the paired bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 12345,
    output: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json, evaluation.md and answers.jsonl.")
    ] = None,
) -> None:
    """Score the base model, prefixes and texts in context on the same examples, and compare each with the first."""
    if output is not None:
        check_folder(output)
    prefixes = read_prefixes(prefix or [])
    given = {**recipe_settings(context), "batch_size": batch_size}
    recipe = recipe_for(data, prefixes, given)
    bare = [System("base")] if base else []
    systems = [*bare, *read_texts(text or []), *(System(name, prefix=name) for name in prefixes)]
    if not systems:
        raise ConfigError("there is nothing to evaluate; give --prefix or --text, or leave out --no-base.")
    bootstrap = PairedBootstrap(num_resamples, seed)
    found = evaluate_recipe(recipe, prefixes, systems, metrics, max_new_tokens, bootstrap)
    console = Console()
    written = []
    if output is not None:  # before anything is printed, which fails if the terminal is gone
        settings = {name: getattr(recipe, name) for name in ("data", *given)}
        settings |= {"max_new_tokens": max_new_tokens, "num_resamples": num_resamples, "seed": seed}
        settings |= {"prefixes": prefix or [], "texts": {system.name: system.text for system in systems if system.text}}
        written = report.write_report(found, output, settings)
    print_table(report.scores(found), console, report.summary(found))
    if found.comparisons:
        print_table(report.differences(found), console, f"paired bootstrap, {num_resamples:,} samples")
    list_files(written, console)


def recipe_settings(context: typer.Context) -> dict[str, Any]:
    """Return the flags that are settings of a recipe, by the same names; None for those that were not given."""
    given = {name: context.params[name] for name in (*SHARED_SETTINGS, "data_config", "data_split", "num_examples")}
    for template in ("prompt", "answer"):
        given[template] = unescape(given[template]) if given[template] else None
    return given
