"""What a recipe names, loaded: the wording of its examples and the base model for its task."""

from __future__ import annotations

from collections.abc import Sequence

from antefix.errors import ConfigError
from antefix.training.base import load_tokenizer
from antefix.training.chats import Chats
from antefix.training.classification import Classification, labels_of
from antefix.training.examples import Example, Wording
from antefix.training.recipe import Recipe
from antefix.training.task import Task
from antefix.training.templates import Template, Templates
from antefix.training.writing import Writing


def wording_of(recipe: Recipe) -> Wording:
    """Return what makes examples of rows: the chat template of the model, or the templates of prompt and answer."""
    if recipe.messages is not None:
        return Chats(recipe.messages, load_tokenizer(recipe.model, "model"))
    return Templates(Template(recipe.prompt or ""), Template(recipe.answer or ""))


def load_task(
    recipe: Recipe,
    examples: Sequence[Example],
    labels: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
) -> Task:
    """Load the base model for the task of a recipe.

    It chooses among `labels`, or else those of the examples, or writes at most `max_new_tokens`.
    """
    if recipe.task == "classification":
        if max_new_tokens is not None:
            raise ConfigError(
                "max_new_tokens is of answers that are written; a classification has labels, so leave it out."
            )
        return Classification.load(recipe.model, labels or labels_of(examples), in_order=labels is not None)
    chats = recipe.messages is not None
    return Writing.load(recipe.model, recipe.answer_tokenizer, chats, max_new_tokens)
