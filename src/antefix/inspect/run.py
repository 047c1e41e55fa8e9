"""`inspect_recipe`: what a prefix does to its base model on data, in one pass that keeps none of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor
from transformers import set_seed

from antefix.bank import PrefixBank
from antefix.config import PrefixConfig
from antefix.errors import ConfigError
from antefix.initialize import text_ids, token_prefix
from antefix.inspect.ablation import without_each_layer
from antefix.inspect.attention import AttentionShares
from antefix.inspect.drift import Drift, drift
from antefix.prefix import Prefix
from antefix.sites import Kind
from antefix.training.examples import examples_of
from antefix.training.load import load_task, wording_of
from antefix.training.mixed import MixedBatches
from antefix.training.provenance import Provenance
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.rows import Row, stream_rows
from antefix.training.systems import shared_labels
from antefix.training.task import Task
from antefix.training.tokens import IGNORED_LABEL, TokenizedExamples

BASE, WHOLE = "bare base", "prefix"


@dataclass(frozen=True)
class Inspection:
    """What a prefix does to a base model on data.

    `shares` has the mean share of attention `(head, token)` that real tokens give to each virtual token, by site path;
    `losses` the loss, in nats per token, of the bare base, of the prefix, and of the prefix without each of its layers.
    """

    num_examples: int
    shares: Mapping[str, Tensor]
    losses: Mapping[str, float]
    drift: Drift | None


def inspect_recipe(recipe: Recipe, prefix: Prefix, console: Console) -> Inspection:
    """Run a prefix over a recipe's data, with its model and wording; raises `AntefixError` for what does not fit.

    Attention is computed by the base's eager implementation, which returns its weights.
    """
    labels = shared_labels({WHOLE: prefix}) if recipe.task == "classification" else None
    if recipe.task == "classification" and labels is None:
        raise ConfigError("the prefix does not tell which labels it was trained to choose from, so it cannot choose.")
    set_seed(recipe.seed)  # a checkpoint without a head gets one at random
    task = load_task(recipe, (), labels)
    task.model.set_attn_implementation("eager")
    bank = task.attach()
    systems = {WHOLE: prefix, **{f"without {name}": part for name, part in without_each_layer(prefix).items()}}
    for name, held in systems.items():
        bank.add(name, held)
    mixed = MixedBatches(bank, [None, *systems], recipe.batch_size)
    sums = {name: np.zeros(2) for name in (BASE, *systems)}
    shares, num_examples = AttentionShares(prefix), 0
    rows = stream_rows(recipe.data, recipe.num_examples, recipe.data_config, recipe.data_split)
    wording = wording_of(recipe)
    moved = _drift(task, bank, prefix)
    for batch in _counted(_batches(rows, recipe.batch_size), console):
        part = TokenizedExamples.of(examples_of(batch, wording), task.preprocessor)
        task.check_room(Room(bank, WHOLE), part)
        _watch(task, bank, part, shares)
        measured = task.measure([part] * len(sums), mixed, ["loss"])
        for name, found in zip(sums, measured, strict=True):
            sums[name] += found.metrics["loss"].statistics.sum(axis=0)
        num_examples += len(batch)
    losses = {name: float(total / number) for name, (total, number) in sums.items()}
    return Inspection(num_examples, shares.by_site(), losses, moved)


def _watch(task: Task, bank: PrefixBank, part: TokenizedExamples, shares: AttentionShares) -> None:
    collated = task.preprocessor.collate(part.features(task.preprocessor))
    batch = {name: tensor.to(task.model.device) for name, tensor in collated.items()}
    read, labels = batch["attention_mask"] == 1, batch["labels"]
    writes = task.model.config.is_encoder_decoder and labels.ndim == 2
    written = labels != IGNORED_LABEL if writes else read
    real: dict[Kind, Tensor] = {"encoder": read, "decoder": written, "cross": written}
    with bank.use(WHOLE), shares.watching(task.model, real), torch.no_grad():
        task.model(**batch, use_cache=False)


def _drift(task: Task, bank: PrefixBank, prefix: Prefix) -> Drift | None:
    """Compare a prefix with the text it started as; None if its recipe does not tell that it started from text.

    The recipe of a prefix that was composed of others is that of the first, so it tells nothing.
    """
    if "composition" in prefix.metadata:
        return None
    settings = Provenance.of(prefix).training.get("prefix")
    if not isinstance(settings, Mapping) or settings.get("init", "text") != "text":
        return None
    text = settings.get("init_text")
    length = settings.get("num_virtual_tokens", PrefixConfig.num_virtual_tokens)
    if length != prefix.num_virtual_tokens or not isinstance(text, str | None):
        return None  # it is a part of what was trained, or more than that
    tokenizer = task.preprocessor.tokenizer
    ids = text_ids(tokenizer, text, prefix.num_virtual_tokens)
    with bank.use(None):
        start = token_prefix(task.model, torch.tensor([ids], device=task.model.device), prefix.sites)
    return drift(start, prefix, [str(tokenizer.decode([token])) for token in ids])


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def _counted(batches: Iterable[list[Row]], console: Console) -> Iterator[list[Row]]:
    """Show how many examples were read; a stream does not tell how many there are."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed:,} examples"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        shown = progress.add_task("inspecting", total=None)
        for batch in batches:
            yield batch
            progress.advance(shown, len(batch))
