"""`antefix distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from antefix.cli.lines import list_files, stopping
from antefix.training.distillation import Distillation, DistillationResult
from antefix.training.distillation import distill as distill_document
from antefix.training.distillation.run import folder_of
from antefix.training.templates import unescape

PREFIX_SETTINGS = ("num_virtual_tokens", "init")
"""Flags that are settings of the prefix; all others are the distillation's, by the same names."""


def distill(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="YAML file with any of these settings; flags override it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a Hub name, a folder, or 'embedded' for antefix's own small one.")
    ] = None,
    document: Annotated[Path | None, typer.Option(help="The text file to turn into a prefix.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder for the prefix, lessons, report and loss curve. [default: runs/document]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted distillation in the output folder.")
    ] = False,
    num_virtual_tokens: Annotated[
        int | None, typer.Option(help="Length of the prefix. [default: a tenth of the document's tokens]")
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from 'text' (the document's first tokens), 'random' or 'zero'.")
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(help="Kind of lesson the base writes: question, note or summary; repeat it. [default: all]"),
    ] = None,
    num_lessons: Annotated[int | None, typer.Option(help="Number of lessons it writes. [default: 1024]")] = None,
    chunk_length: Annotated[
        int | None, typer.Option(help="Tokens the base reads at once. [default: half of the document, at most 4096]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens per question or answer. [default: 128]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 writes the likeliest token; above 0, it samples. [default: 1]")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Questions to answer, instead of the base's own.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Questions with answers to measure the prefix on.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Template of the questions, such as 'Question: {question}\\nAnswer:'.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="Template of the answers in --eval-data, such as ' {answer}'.")
    ] = None,
    messages: Annotated[
        str | None, typer.Option(help="Field that holds a conversation, in place of templates.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="'kl' learns the teacher's distribution, 'next-token' its words. [default: kl]")
    ] = None,
    num_logits: Annotated[
        int | None, typer.Option(help="Likeliest tokens kept per distribution. [default: 20]")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate. [default: 0.1]")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the lessons. [default: 20]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Lessons per step. [default: 16]")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed for everything. [default: 0]")] = None,
) -> None:
    """Turn a document into a prefix: the base studies it, then the prefix learns to do without it."""
    settings = {name: value for name, value in context.params.items() if name not in ("recipe", "resume")}
    settings["document"] = str(document) if document else None
    settings["kinds"] = kinds or None
    settings["prefix"] = {name: settings.pop(name) for name in PREFIX_SETTINGS}
    for template in ("prompt", "answer"):
        settings[template] = unescape(settings[template]) if settings[template] else None
    chosen = Distillation.from_yaml(recipe, **settings) if recipe else Distillation.from_settings({}, **settings)
    console = Console(stderr=True)
    with stopping(console, lambda: "; --resume goes on from here" if folder_of(chosen).is_begun else ""):
        result = distill_document(chosen, console, resume)
    print_result(result, console)


def print_result(result: DistillationResult, console: Console) -> None:
    """Print losses and divergences, sizes and times, and the paths of the files."""
    found = result.report
    read = "document" if found["teacher"]["tokens_at_once"] == found["document"]["tokens"] else "chunk"
    for part, title, text in (("held_out", "lessons held out", read), ("questions", "questions", "document")):
        if part in found:
            console.print(_table(found[part], title, text))
            advice = _advice({system: score["loss"] for system, score in found[part].items()}, text)
            if advice:
                console.print(f"warning: on {title} {advice}", style="yellow")
    document, prefix = found["document"], found["prefix"]
    console.print(
        f"{document['tokens']:,} tokens ({_megabytes(document)}) became {prefix['tokens']:,} ({_megabytes(prefix)}); "
        f"the teacher saw {found['teacher']['share_seen']:.0%} of the document, "
        f"{found['teacher']['tokens_at_once']:,} tokens at once; {found['lessons']['usable']:,} lessons of "
        f"{found['lessons']['usable'] + found['lessons']['discarded']:,} were usable; study took "
        f"{found['seconds']['study']:,.0f} s, training {found['seconds']['training']:,.0f} s",
        highlight=False,
    )
    list_files((result.prefix_path, result.report_path, result.curve_path), console)


def _advice(losses: dict[str, float], text: str) -> str | None:
    if losses["prefix"] <= losses["base"]:
        return None
    if losses.get("document", 0.0) > losses["base"]:
        return f"the prefix is worse than none, and so is the {text} in context; ask about what it says."
    return "the prefix is worse than none; train it longer."


def _table(scores: dict[str, dict[str, float]], title: str, text: str) -> Table:
    titles = {"base": "base", "document": f"{text} in context", "prefix": "with prefix"}
    table = Table(title, *(titles[system] for system in scores))
    for measure, name in (("loss", "loss (nats per token)"), ("kl", f"KL from {text} in context")):
        if measure in scores["prefix"]:
            table.add_row(name, *(f"{system[measure]:.4f}" for system in scores.values()))
    return table


def _megabytes(part: dict[str, Any]) -> str:
    return f"{part['bytes'] / 1e6:,.2f} MB"
