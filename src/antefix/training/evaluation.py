"""`evaluate`: how well systems on one base model do, and whether they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.errors import ConfigError
from antefix.prefix import Prefix
from antefix.training.bootstrap import Comparison, PairedBootstrap
from antefix.training.examples import Wording, examples_of
from antefix.training.load import load_task, wording_of
from antefix.training.metrics import check_metrics
from antefix.training.mixed import MixedBatches
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.rows import Row, read_rows
from antefix.training.systems import System, shared_labels
from antefix.training.task import Measured, Task
from antefix.training.tokens import TokenizedExamples


@dataclass(frozen=True)
class Evaluation:
    """What was found, by the name of the system; every other system is compared with the first.

    There are no comparisons if there is one prompt only, as it cannot be resampled. `prompts` are the distinct ones,
    without a text before them, and `references` the answers that count as right.
    """

    measured: Mapping[str, Measured]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    num_examples: int
    prompts: Sequence[str]
    references: Sequence[Sequence[str]]


def evaluate_recipe(
    recipe: Recipe,
    prefixes: Mapping[str, Prefix],
    systems: Sequence[System],
    metrics: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    bootstrap: PairedBootstrap = PairedBootstrap(),  # noqa: B008 - it is immutable
) -> Evaluation:
    """Evaluate systems with these prefixes on a recipe's data, with its model and wording.

    The labels of a classification are those that the prefixes were trained on, or else those of the data.
    """
    rows = read_rows(recipe.data, recipe.num_examples, recipe.data_config, recipe.data_split)
    wording = wording_of(recipe)
    set_seed(recipe.seed)  # a checkpoint without a head gets one at random
    labels = shared_labels(prefixes) if recipe.task == "classification" else None
    task = load_task(recipe, examples_of(rows, wording), labels, max_new_tokens)
    bank = task.attach()
    for name, prefix in prefixes.items():
        bank.add(name, prefix)
    return evaluate(task, bank, systems, rows, wording, metrics, recipe.batch_size, bootstrap)


def evaluate(
    task: Task,
    bank: PrefixBank,
    systems: Sequence[System],
    rows: Sequence[Row],
    wording: Wording,
    metrics: Sequence[str] | None = None,
    batch_size: int = 16,
    bootstrap: PairedBootstrap = PairedBootstrap(),  # noqa: B008 - it is immutable
) -> Evaluation:
    """Measure systems on the same rows, by the metrics named or all those of the task.

    Rows of all systems are mixed in one batch. Raises `ConfigError` for a metric that the task does not have or that
    needs a library which is missing, `ContextLengthError` for a prompt that leaves no room.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ConfigError(f"two systems have the same name; they are {', '.join(map(repr, names))}.")
    metrics = list(metrics or task.metrics)
    check_metrics(metrics, task.metrics)
    parts = [TokenizedExamples.of(examples_of(rows, wording, system.text), task.preprocessor) for system in systems]
    for system, part in zip(systems, parts, strict=True):
        task.check_room(Room(bank, system.prefix), part, metrics)
    mixed = MixedBatches(bank, [system.prefix for system in systems], batch_size)
    measured = dict(zip(names, task.measure(parts, mixed, metrics), strict=True))
    plain = examples_of(rows, wording)
    groups = task.groups(parts[0].examples)
    return Evaluation(
        measured=measured,
        comparisons=_compared(measured, bootstrap) if len(groups) > 1 else {},
        num_examples=len(plain),
        prompts=[plain[group[0]].prompt for group in groups],
        references=[[task.reference(plain[number]) for number in group] for group in groups],
    )


def _compared(measured: Mapping[str, Measured], bootstrap: PairedBootstrap) -> dict[str, dict[str, Comparison]]:
    (_, first), *others = measured.items()
    return {
        system: {name: bootstrap.compare(metric, other.metrics[name]) for name, metric in first.metrics.items()}
        for system, other in others
    }


def score(
    task: Task, bank: PrefixBank, prefix: str | None, part: TokenizedExamples, metrics: Sequence[str], batch_size: int
) -> dict[str, float]:
    """Return the figures of one system on tokenized examples."""
    (measured,) = task.measure([part], MixedBatches(bank, [prefix], batch_size), metrics)
    return {name: metric.value for name, metric in measured.metrics.items()}
