"""From a recipe to a base model with a prefix to train, and examples that fit both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.training.lengths import check_length, cut_all, cut_prompts, spreads
from antefix.training.load import load_task, wording_of
from antefix.training.metrics import LABEL_METRICS
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.split import split_examples
from antefix.training.task import Task
from antefix.training.tokens import TokenizedExamples


@dataclass(frozen=True)
class Prepared:
    """All that training needs.

    `scores` names the metrics to report; `lengths` are those of the trained examples, in tokens, before any was cut.
    """

    task: Task
    bank: PrefixBank
    trained: TokenizedExamples
    held_out: TokenizedExamples
    scores: Sequence[str]
    lengths: dict[str, dict[str, int]]


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Read, load and check everything that a recipe names; raises `AntefixError` for whatever does not fit."""
    examples = split_examples(recipe, wording_of(recipe))
    set_seed(recipe.seed)
    task = load_task(recipe, examples[0])
    trained, held_out = (TokenizedExamples.of(part, task.preprocessor) for part in examples)
    if not recipe.truncation:
        check_length(task.preprocessor, [trained, held_out], recipe.max_length)
    bank = task.attach()
    metadata = {"training": recipe.as_dict(), **task.metadata}
    bank.add(recipe.name, task.configure(recipe.prefix), tokenizer=task.preprocessor.tokenizer, metadata=metadata)
    room = Room(bank, recipe.name)
    lengths = spreads(task.preprocessor, trained)
    warnings = [_same_prompt_warning(trained), task.warning(trained)]
    scores = _scores(recipe)
    if recipe.truncation:
        max_length = min(recipe.max_length, room.max_tokens or recipe.max_length)
        (trained, held_out), loss_of_text = cut_all(task.preprocessor, [trained, held_out], max_length)
        warnings.append(loss_of_text)
        if "exact_match" in scores and room.max_tokens is not None:
            held_out = cut_prompts(task.preprocessor, held_out, room.max_tokens)
    task.check_room(room, trained)
    task.check_room(room, held_out, scores)
    _report(lengths, warnings, console)
    return Prepared(task, bank, trained, held_out, scores, lengths)


def _scores(recipe: Recipe) -> tuple[str, ...]:
    if recipe.task == "classification":
        return LABEL_METRICS
    return ("loss", "exact_match") if recipe.exact_match else ("loss",)


def _same_prompt_warning(part: TokenizedExamples) -> str | None:
    """Return a sentence about prompts that are all the same, as those of a template without braces are, or None."""
    first = part.examples[0].prompt
    if not first or len(part.examples) == 1 or any(example.prompt != first for example in part.examples):
        return None
    return f"all prompts are {first[:60]!r}; write a field of the data in their template as {{field}}."


def _report(lengths: dict[str, dict[str, int]], warnings: Sequence[str | None], console: Console) -> None:
    for name, numbers in lengths.items():
        median, most, longest = (f"{number:,}" for number in numbers.values())
        console.print(
            f"{name}: {median} tokens in the median, 95 % at most {most}, the longest {longest}", highlight=False
        )
    for warning in filter(None, warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
