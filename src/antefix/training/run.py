"""`train`: from a recipe to a prefix file, its metrics and its loss curve."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from antefix.bank import PrefixBank
from antefix.errors import DivergedError
from antefix.storage import save_prefix, write_atomically
from antefix.training.curve import draw_loss_curve
from antefix.training.evaluation import score
from antefix.training.fit import fit
from antefix.training.label_trainer import LabelTrainer
from antefix.training.launch import is_main_process
from antefix.training.plain_json import as_json
from antefix.training.prepare import Prepared, prepare
from antefix.training.recipe import Recipe
from antefix.training.resume import RunFolder
from antefix.training.trainer import FILE_NAME


@dataclass(frozen=True)
class TrainingResult:
    """The files of a training, and how the prefix did; `metrics` are also in `metrics.json`."""

    prefix_path: Path
    metrics_path: Path
    curve_path: Path | None
    metrics: dict[str, Any]


def train(recipe: Recipe, console: Console | None = None, resume: bool = False) -> TrainingResult:
    """Train a prefix by a recipe; nothing is written before data, templates and model are known to fit.

    `resume` goes on from the last checkpoint of an interrupted run of the same recipe, and ends with the same prefix.
    Under `torchrun` or `accelerate launch`, `batch_size` is that of each process, and the first one writes the files.
    Raises `AntefixError` for bad settings, data or models, `ConfigError` for a folder that holds another run to resume.
    An interrupt leaves the last checkpoint in `<output>/checkpoint-<step>` and is raised as `KeyboardInterrupt`.
    """
    console = console or Console(stderr=True, quiet=not is_main_process())
    run_folder = folder_of(recipe)
    if resume:
        run_folder.check_same()
    else:
        run_folder.check_free()
    prepared = prepare(recipe, console)
    task, bank, held_out = prepared.task, prepared.bank, prepared.held_out
    features = prepared.trained.features(task.preprocessor)
    console.print(f"scoring the base on {len(held_out.examples):,} held-out examples", highlight=False)
    before = score(task, bank, None, held_out, prepared.scores, recipe.batch_size)
    if recipe.gradient_checkpointing:
        # Transformers renamed the method after the oldest version that antefix supports.
        getattr(task.model, "activation_checkpointing_enable", task.model.gradient_checkpointing_enable)()
    if not resume and is_main_process():
        run_folder.begin()
    checkpoint = run_folder.checkpoint if resume else None
    try:
        history, speed = _fit(recipe, prepared, features, checkpoint, console)
    except DivergedError:  # it would diverge again if it were resumed
        run_folder.end()
        raise
    after = score(task, bank, recipe.name, held_out, prepared.scores, recipe.batch_size)
    metrics = {
        "before": before,
        "after": after,
        "train_loss": history,
        "num_train_examples": len(features),
        "num_held_out_examples": len(held_out.examples),
        "lengths": prepared.lengths,
        "num_trainable_parameters": sum(p.numel() for p in task.model.parameters() if p.requires_grad),
        "tokens_per_second": round(speed, 1),
        "recipe": recipe.as_dict(),
    }
    result = _write(recipe, bank, metrics)
    if is_main_process():
        run_folder.end()
    return result


def folder_of(recipe: Recipe) -> RunFolder:
    """Return the folder in which a recipe's training runs."""
    return RunFolder(recipe.output, {"command": "train", **recipe.as_dict()}, ("data", "eval_data"))


def _fit(
    recipe: Recipe, prepared: Prepared, features: list[dict[str, Any]], checkpoint: Path | None, console: Console
) -> tuple[list[dict[str, float]], float]:
    """Train the prefix, from a checkpoint if there is one; return loss by step and tokens per second."""
    make_trainer = functools.partial(
        LabelTrainer,
        prepared.bank,
        recipe.name,
        recipe.head_learning_rate,
        train_dataset=features,
        data_collator=prepared.task.preprocessor.collate,
    )
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}", highlight=False, soft_wrap=True)
    num_tokens = sum(len(one["input_ids"]) for one in features)
    return fit(make_trainer, recipe, recipe.output, num_tokens, console, checkpoint)


def _write(recipe: Recipe, bank: PrefixBank, metrics: dict[str, Any]) -> TrainingResult:
    folder = Path(recipe.output)
    prefix_path, metrics_path, curve = folder / FILE_NAME, folder / "metrics.json", folder / "loss.png"
    prefix = bank.prefix(recipe.name)  # every process may hold a shard of it
    if not is_main_process():
        return TrainingResult(prefix_path, metrics_path, curve, metrics)
    save_prefix(prefix, prefix_path)
    write_atomically(metrics_path, as_json(metrics))
    before, after = (metrics[when]["loss"] for when in ("before", "after"))
    drawn = draw_loss_curve(metrics["train_loss"], before, after, "loss (nats per token)", curve)
    return TrainingResult(prefix_path, metrics_path, drawn, metrics)
