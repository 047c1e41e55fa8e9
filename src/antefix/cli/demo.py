"""`antefix demo`: two prefixes for two tasks on the embedded model, trained in a minute and compared."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from antefix.bank import attach
from antefix.embedded.records import draw_examples, prompt
from antefix.storage import write_atomically
from antefix.training import Recipe, TrainingResult, train
from antefix.training.base import load_base
from antefix.training.generation import answers
from antefix.training.run import folder_of

FORMS = ("headline", "letter")
NUM_HELD_OUT = 50
MAX_NEW_TOKENS = 80


def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("antefix-demo"),
    num_examples: Annotated[int, typer.Option(min=10, help="Training examples for each prefix.")] = 200,
    epochs: Annotated[float, typer.Option(help="Passes over the examples.")] = 6.0,
) -> None:
    """Train two prefixes on the embedded model and show what they do, side by side with the bare base."""
    console = Console()
    console.print(
        "The embedded model can tell a small record in nine forms. Its prompts name the form in a header; here the "
        f"header is left out, and a prefix learns the form from {num_examples} examples instead.\n",
        highlight=False,
    )
    results = {form: _train(form, output, num_examples, epochs, console) for form in FORMS}
    _print_scores(results, console)
    _print_samples(results, console)
    _print_next_steps(results, console)


def _train(form: str, output: Path, num_examples: int, epochs: float, console: Console) -> TrainingResult:
    """Write the examples of one form and train its prefix on them."""
    seed = 1 + FORMS.index(form)
    data, held_out = output / f"{form}.jsonl", output / f"{form}-held-out.jsonl"
    _write_jsonl(data, draw_examples(form, num_examples, seed))
    _write_jsonl(held_out, draw_examples(form, NUM_HELD_OUT, seed + 100))
    console.print(f"prefix [bold]{form}[/]")
    recipe = Recipe.from_settings(
        {
            "model": "embedded",
            "data": str(data),
            "eval_data": str(held_out),
            "prompt": prompt("{source}"),
            "answer": "{target}",
            "output": str(output / form),
            "name": form,
            "epochs": epochs,
            "exact_match": True,
        }
    )
    folder_of(recipe).end()  # a demo that was interrupted starts again
    return train(recipe, console)


def _print_scores(results: dict[str, TrainingResult], console: Console) -> None:
    table = Table(title="\nheld-out score, base and with prefix", title_justify="left")
    for column in ("prefix", "loss: base", "with prefix", "exact match: base", "with prefix"):
        table.add_column(column, justify="left" if column == "prefix" else "right")
    for form, result in results.items():
        before, after = result.metrics["before"], result.metrics["after"]
        table.add_row(
            form,
            f"{before['loss']:.3f}",
            f"{after['loss']:.3f}",
            f"{before['exact_match']:.0%}",
            f"{after['exact_match']:.0%}",
        )
    console.print(table)


def _print_samples(results: dict[str, TrainingResult], console: Console) -> None:
    """Print the answers to new records, each told by the base and by both prefixes in one batch."""
    model, preprocessor = load_base("embedded")
    bank = attach(model)
    for form, result in results.items():
        bank.load(result.prefix_path, name=form)
    table = Table(title="\nthe same records, each told three times in one batch", title_justify="left", show_lines=True)
    for column in ("record", "base", *(f"prefix {letter}: {form}" for letter, form in zip("AB", FORMS, strict=True))):
        table.add_column(column, ratio=1)
    for example in draw_examples("plain", 3, seed=11):
        choices = [None, *FORMS]
        with bank.use(choices):
            told = answers(model, preprocessor, [prompt(example["source"])] * len(choices), MAX_NEW_TOKENS)
        table.add_row(*(Text(text) for text in (example["source"], *told)))
    console.print(table)


def _print_next_steps(results: dict[str, TrainingResult], console: Console) -> None:
    console.print("\nfiles")
    for result in results.values():
        for path in (result.prefix_path, result.metrics_path, result.curve_path):
            if path is not None:
                console.print(f"  {path}  ({path.stat().st_size / 1024:,.0f} kB)", highlight=False, soft_wrap=True)
    prefix = results[FORMS[0]].prefix_path
    record = "name: Danora Mokins | job: baker | town: Benton | age: 41 | likes: chess"
    folder = prefix.parent.parent
    called = Path(sys.argv[0])  # perhaps `.venv/bin/antefix`, which the shell would not find by the name alone
    antefix = called if called.name == "antefix" and not shutil.which("antefix") else "antefix"
    console.print(
        "\nnext\n"
        f"  {quote(str(antefix))} generate --prefix {quote(str(prefix))} --prompt '{record}\\n=>\\n'\n"
        f"  {quote(str(antefix))} train --model embedded --data {quote(str(folder / FORMS[1]) + '.jsonl')} "
        f"--prompt '{{source}}\\n=>\\n' "
        f"--answer '{{target}}' --num-virtual-tokens 8 --epochs 6 --exact-match "
        f"--output {quote(str(folder / 'short'))}\n"
        f"  {quote(str(antefix))} train --help",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
