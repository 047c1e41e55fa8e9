"""From a recipe to a base model with a prefix to train, and examples that fit both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.errors import DataError
from antefix.training.examples import Example, examples_of
from antefix.training.lengths import check_length, cut_all, spreads
from antefix.training.load import load_task, wording_of
from antefix.training.metrics import LABEL_METRICS
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.rows import Row, read_rows
from antefix.training.task import Task
from antefix.training.tokens import Part

MOST_HELD_OUT = 200


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    `scores` are the metrics to report, `lengths` those of the trained examples in tokens, before any was cut.
    """

    task: Task
    bank: PrefixBank
    trained: Part
    held_out: Part
    scores: Sequence[str]
    lengths: dict[str, dict[str, int]]


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Read, load and check everything a recipe names; raises `AntefixError` for whatever does not fit."""
    wording = wording_of(recipe)
    examples = [examples_of(rows, wording) for rows in _read(recipe)]
    if recipe.task == "classification" and recipe.eval_data is recipe.eval_split is None:
        examples = _with_every_label(*examples)
    set_seed(recipe.seed)
    task = load_task(recipe, examples[0])
    parts = [Part.encoded(part, task.encoder) for part in examples]
    if not recipe.truncation:
        check_length(task.encoder, parts, recipe.max_length)
    bank = task.attach()
    metadata = {"training": recipe.as_dict(), **task.metadata}
    bank.add(recipe.name, task.configure(recipe.prefix), tokenizer=task.encoder.tokenizer, metadata=metadata)
    room = Room(bank, recipe.name)
    lengths, warnings = spreads(task.encoder, parts[0]), [task.warn(parts[0])]
    if recipe.truncation:
        parts, cut = cut_all(task.encoder, parts, min(recipe.max_length, room.most or recipe.max_length))
        warnings.append(cut)
    trained, held_out = parts
    task.check_room(room, trained)
    scores = _scores(recipe)
    task.check_room(room, held_out, scores)
    _report(lengths, warnings, console)
    return Prepared(task, bank, trained, held_out, scores, lengths)


def _scores(recipe: Recipe) -> tuple[str, ...]:
    if recipe.task == "classification":
        return LABEL_METRICS
    return ("loss", "exact_match") if recipe.exact_match else ("loss",)


def _read(recipe: Recipe) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and those held out."""
    rows = read_rows(recipe.data, recipe.num_examples, recipe.data_config, recipe.data_split)
    if recipe.eval_data is not None:
        return rows, read_rows(recipe.eval_data, split=recipe.eval_split)
    if recipe.eval_split is not None:
        return rows, read_rows(recipe.data, config=recipe.data_config, split=recipe.eval_split)
    if len(rows) < 10:
        of = f"the {len(rows)} examples of '{recipe.data}'" + ("" if recipe.num_examples is None else " (num_examples)")
        raise DataError(f"{of} are fewer than ten, too few to hold some out; take more, or give --eval-data.")
    number = min(len(rows) // 10, MOST_HELD_OUT)
    taken = set(random.Random(recipe.seed).sample(range(len(rows)), number))  # data may have a period of its own
    held_out = [row for place, row in enumerate(rows) if place in taken]
    return [row for place, row in enumerate(rows) if place not in taken], held_out


def _with_every_label(trained: list[Example], held_out: list[Example]) -> list[list[Example]]:
    """Train on those held-out examples, too, whose label no other has; all labels are to be learned."""
    known = {example.answer for example in trained}
    moved = [example for example in held_out if example.answer not in known]
    kept = [example for example in held_out if example.answer in known]
    if not kept:
        raise DataError(
            f"each of the {len(held_out)} examples to hold out has a label that no other has; give --eval-data, or "
            "more examples of each label."
        )
    return [trained + moved, kept]


def _report(lengths: dict[str, dict[str, int]], warnings: Sequence[str | None], console: Console) -> None:
    for name, numbers in lengths.items():
        median, most, longest = (f"{number:,}" for number in numbers.values())
        console.print(
            f"{name}: {median} tokens in the median, 95 % at most {most}, the longest {longest}", highlight=False
        )
    for warning in filter(None, warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
