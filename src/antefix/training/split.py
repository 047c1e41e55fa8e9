"""Which examples are trained on, and which are held out to score on."""

from __future__ import annotations

import random

from antefix.errors import DataError
from antefix.training.examples import Example, Wording, examples_of
from antefix.training.groups import MIN_TO_DRAW_FROM, group_to_draw_from, num_held_out
from antefix.training.recipe import Recipe
from antefix.training.rows import read_rows


def split_examples(recipe: Recipe, wording: Wording) -> tuple[list[Example], list[Example]]:
    """Return the examples to train on and those held out: others that the recipe names, or a tenth of its data.

    Raises `DataError` for data that cannot be read or worded, or is too little to hold any out.
    """
    rows = read_rows(recipe.data, recipe.num_examples, recipe.data_config, recipe.data_split)
    if recipe.eval_data is not None:
        others = read_rows(recipe.eval_data, split=recipe.eval_split)
    elif recipe.eval_split is not None:
        others = read_rows(recipe.data, config=recipe.data_config, split=recipe.eval_split)
    else:
        return _drawn(examples_of(rows, wording), recipe)
    return examples_of(rows, wording), examples_of(others, wording)


def _drawn(examples: list[Example], recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Hold out examples at random, as data may be periodic; all answers to one prompt stay together."""
    if len(examples) < MIN_TO_DRAW_FROM:
        of = f"the {len(examples)} examples of '{recipe.data}'"
        of += "" if recipe.num_examples is None else " (num_examples)"
        raise DataError(f"{of} are fewer than ten, too few to hold some out; take more, or give --eval-data.")
    groups = group_to_draw_from([example.prompt for example in examples], range(len(examples)))
    number = num_held_out(groups)
    taken = {place for group in random.Random(recipe.seed).sample(groups, number) for place in group}
    held_out = [example for place, example in enumerate(examples) if place in taken]
    trained = [example for place, example in enumerate(examples) if place not in taken]
    return _with_every_label(trained, held_out) if recipe.task == "classification" else (trained, held_out)


def _with_every_label(trained: list[Example], held_out: list[Example]) -> tuple[list[Example], list[Example]]:
    """Move held-out examples whose label no other has to the trained ones, as all labels are to be learned."""
    known = {example.answer for example in trained}
    moved = [example for example in held_out if example.answer not in known]
    kept = [example for example in held_out if example.answer in known]
    if not kept:
        raise DataError(
            f"each of the {len(held_out)} examples to hold out has a label that no other has; give --eval-data, or "
            "more examples of each label."
        )
    return trained + moved, kept
