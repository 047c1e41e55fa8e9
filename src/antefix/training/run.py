"""`train`: from a recipe to a prefix file, its metrics and its loss curve."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainingArguments

from antefix.bank import PrefixBank
from antefix.errors import ConfigError
from antefix.storage import save_prefix, write_atomically
from antefix.training.curve import draw_loss_curve
from antefix.training.evaluation import score
from antefix.training.launch import is_main_process
from antefix.training.prepare import prepare
from antefix.training.progress import ProgressCallback
from antefix.training.recipe import Recipe
from antefix.training.tokens import Encoder
from antefix.training.trainer import FILE_NAME, PrefixTrainer


@dataclass(frozen=True)
class TrainingResult:
    """Where the prefix lies and how it did; `metrics` is also in `metrics.json`."""

    prefix_path: Path
    metrics_path: Path
    curve_path: Path | None
    metrics: dict[str, Any]


def train(recipe: Recipe, console: Console | None = None) -> TrainingResult:
    """Train a prefix as a recipe says; nothing is written before data, templates and model are known to fit.

    Under `torchrun` or `accelerate launch`, `batch_size` is that of each process, and the first one writes.
    Raises `AntefixError` for bad settings, data or models. An interrupt leaves the last checkpoint in
    `<output>/checkpoint-<step>` and goes on as `KeyboardInterrupt`.
    """
    console = console or Console(stderr=True, quiet=not is_main_process())
    if Path(recipe.output).exists() and not Path(recipe.output).is_dir():
        raise ConfigError(f"output is '{recipe.output}', which is a file; name a folder.")
    prepared = prepare(recipe, console)
    task, bank, held_out = prepared.task, prepared.bank, prepared.held_out
    model, rows = task.model, prepared.trained.rows(task.encoder)
    before = score(task, bank, None, held_out, prepared.scores, recipe.batch_size)
    if recipe.gradient_checkpointing:
        # Transformers renamed the method after the oldest version that antefix supports.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    history, speed = _fit(recipe, bank, task.encoder, rows, console)
    after = score(task, bank, recipe.name, held_out, prepared.scores, recipe.batch_size)
    metrics = {
        "before": before,
        "after": after,
        "train_loss": history,
        "num_train_examples": len(rows),
        "num_held_out_examples": len(held_out.examples),
        "lengths": prepared.lengths,
        "num_trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tokens_per_second": round(speed, 1),
        "recipe": recipe.as_dict(),
    }
    return _write(recipe, bank, metrics)


def _fit(
    recipe: Recipe, bank: PrefixBank, encoder: Encoder, rows: Sequence[dict[str, Any]], console: Console
) -> tuple[list[dict[str, float]], float]:
    """Run the Trainer; return loss by step and tokens a second."""
    progress = ProgressCallback(console, tokens_per_epoch=sum(len(row["input_ids"]) for row in rows))
    # Trainer warns that it hands the tokenizer's special ids to the model; here they are the model's own already.
    logger = logging.getLogger("transformers.trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        trainer = PrefixTrainer(
            bank,
            recipe.name,
            args=_arguments(recipe),
            train_dataset=list(rows),
            data_collator=encoder.collate,
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    finally:
        progress.close()
        logger.setLevel(level)
    history = [{"step": log["step"], "loss": float(log["loss"])} for log in trainer.state.log_history if "loss" in log]
    return history, progress.tokens_per_second


def _arguments(recipe: Recipe) -> TrainingArguments:
    try:
        return TrainingArguments(
            output_dir=recipe.output,
            learning_rate=recipe.learning_rate,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_ratio,
            max_grad_norm=recipe.max_grad_norm,
            lr_scheduler_type="cosine",
            seed=recipe.seed,
            logging_steps=0.01,
            logging_nan_inf_filter=False,
            save_steps=0.1,
            save_total_limit=1,
            save_only_model=True,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            use_cpu=not torch.accelerator.is_available(),  # else processes on a CPU would not know of each other
            report_to="none",
        )
    except ImportError as error:
        raise ConfigError('training needs accelerate: pip install "antefix[train]".') from error


def _write(recipe: Recipe, bank: PrefixBank, metrics: dict[str, Any]) -> TrainingResult:
    folder = Path(recipe.output)
    prefix_path, metrics_path, curve = folder / FILE_NAME, folder / "metrics.json", folder / "loss.png"
    prefix = bank.prefix(recipe.name)  # every process may hold a shard of it
    if not is_main_process():
        return TrainingResult(prefix_path, metrics_path, curve, metrics)
    save_prefix(prefix, prefix_path)
    write_atomically(metrics_path, json.dumps(metrics, indent=2).encode())
    return TrainingResult(prefix_path, metrics_path, draw_loss_curve(metrics, curve), metrics)
