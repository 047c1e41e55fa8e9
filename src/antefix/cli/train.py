"""`antefix train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from antefix.cli.lines import list_files, stopping
from antefix.training import Recipe, TrainingResult
from antefix.training import train as train_recipe
from antefix.training.launch import is_main_process, leave_group
from antefix.training.metrics import show, title
from antefix.training.resume import unfinished
from antefix.training.templates import unescape
from antefix.training.trainer import FILE_NAME

PREFIX_SETTINGS = ("num_virtual_tokens", "sites", "reparameterization", "init", "init_text")
"""Flags that are settings of the prefix; all others are the recipe's, by the same names."""


def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML file with any of these settings; flags override it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a Hub name, a folder, or 'embedded' for antefix's own small one.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Examples: .jsonl or .csv (also gzipped), .parquet, a folder of Dataset.save_to_disk, or a Hub "
            "dataset."
        ),
    ] = None,
    data_config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")] = None,
    data_split: Annotated[str | None, typer.Option(help="Split of a dataset. [default: train]")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="'text' learns to write the answer; 'classification' to choose it as a label. [default: text]"
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Template of the prompt, such as '{question}\\n'; \\n is a line break.")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Template of the answer, such as '{answer}'.")] = None,
    messages: Annotated[
        str | None,
        typer.Option(help="Field that holds a conversation, in place of templates; its last message is the answer."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for the prefix, metrics and loss curve. [default: runs/prefix]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted training in the output folder.")
    ] = False,
    eval_data: Annotated[
        str | None, typer.Option(help="Examples to score on; by default, a tenth of the data is held out.")
    ] = None,
    eval_split: Annotated[str | None, typer.Option(help="Split of --eval-data or --data to score on.")] = None,
    answer_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer for the answers, if it is not the model's.")
    ] = None,
    num_examples: Annotated[int | None, typer.Option(help="Use only this many examples, from the first on.")] = None,
    num_virtual_tokens: Annotated[int | None, typer.Option(help="Length of the prefix. [default: 32]")] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Kind of attention that gets a prefix: encoder, decoder or cross; repeat it. [default: all]"),
    ] = None,
    reparameterization: Annotated[
        str | None, typer.Option(help="'mlp' trains through the paper's network, which is discarded afterwards.")
    ] = None,
    init: Annotated[str | None, typer.Option(help="Start from 'text', 'random' or 'zero'. [default: text]")] = None,
    init_text: Annotated[str | None, typer.Option(help="The text to start from.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate. [default: 0.1]")] = None,
    head_learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate of a head trained beside the prefix. [default: 0.001]")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. [default: 3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step. [default: 16]")] = None,
    max_length: Annotated[int | None, typer.Option(help="Maximum tokens per example. [default: 1024]")] = None,
    truncation: Annotated[
        bool | None, typer.Option("--truncation", help="Cut longer examples instead of refusing them.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, typer.Option("--gradient-checkpointing", help="Recompute activations to save memory.")
    ] = None,
    exact_match: Annotated[
        bool | None, typer.Option("--exact-match", help="Also generate and score the held-out answers.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for everything. [default: 0]")] = None,
) -> None:
    """Train a prefix on examples; write prefix.safetensors, metrics.json and loss.png."""
    settings = {name: value for name, value in context.params.items() if name not in ("recipe", "resume")}
    for written in ("prompt", "answer", "init_text"):
        settings[written] = unescape(settings[written]) if settings[written] else None
    settings["prefix"] = {name: settings.pop(name) for name in PREFIX_SETTINGS} | {"sites": sites or None}
    console = Console(stderr=True, quiet=not is_main_process())
    chosen = Recipe.from_yaml(recipe, **settings) if recipe else Recipe.from_settings({}, **settings)
    with stopping(console, lambda: _going_on(chosen.output)):
        result = train_recipe(chosen, console, resume)
    print_result(result, console)
    leave_group()


def print_result(result: TrainingResult, console: Console) -> None:
    """Print the scores before and after training, and the paths of the files."""
    table = Table("held out", "base", "with prefix")
    for name, before in result.metrics["before"].items():
        table.add_row(title(name), show(name, before), show(name, result.metrics["after"][name]))
    console.print(table)
    if result.metrics["after"]["loss"] > result.metrics["before"]["loss"]:
        warning = "warning: the prefix is worse than none; lower the learning rate, or train longer."
        console.print(warning, style="yellow", soft_wrap=True)
    list_files((result.prefix_path, result.metrics_path, result.curve_path), console)


def _going_on(output: str) -> str:
    if checkpoint := unfinished(output):
        return f"; --resume goes on from the last checkpoint, {checkpoint / FILE_NAME}"
    return "; there was no checkpoint yet"
