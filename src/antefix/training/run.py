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
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments, set_seed

from antefix.bank import PrefixBank
from antefix.errors import ConfigError, DataError
from antefix.storage import save_prefix, write_atomically
from antefix.training.base import attach_writer, load_base
from antefix.training.curve import draw_loss_curve
from antefix.training.data import (
    IGNORED_LABEL,
    Collator,
    Example,
    ExampleTokenizer,
    Template,
    fill_templates,
    read_rows,
)
from antefix.training.evaluation import exact_match, longest_answer, loss_per_token, padding_id
from antefix.training.launch import is_main_process
from antefix.training.progress import ProgressCallback
from antefix.training.recipe import Recipe
from antefix.training.room import Room
from antefix.training.trainer import FILE_NAME, PrefixTrainer

MOST_HELD_OUT = 200


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
    examples, held_out = _examples(recipe)
    set_seed(recipe.seed)
    model, encoder = load_base(recipe.model, recipe.answer_tokenizer, recipe.max_length)
    rows, held_out_rows = ([encoder.encode(example) for example in part] for part in (examples, held_out))
    _warn_of_unknown(examples, rows, encoder, console)
    bank = attach_writer(model)
    bank.add(recipe.name, recipe.prefix, tokenizer=encoder.tokenizer, metadata={"training": recipe.as_dict()})
    _check_room(Room(bank, recipe.name), [*examples, *held_out], [*rows, *held_out_rows])
    if recipe.exact_match:
        _check_room_to_write(Room(bank, recipe.name), encoder, held_out)
    with bank.use(None):
        before = _score(recipe, model, encoder, held_out, held_out_rows)
    if recipe.gradient_checkpointing:
        # Transformers renamed the method after the oldest version that antefix supports.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    history, speed = _fit(recipe, bank, encoder, rows, console)
    after = _score(recipe, model, encoder, held_out, held_out_rows)
    metrics = {
        "before": before,
        "after": after,
        "train_loss": history,
        "num_train_examples": len(rows),
        "num_held_out_examples": len(held_out_rows),
        "num_trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tokens_per_second": round(speed, 1),
        "recipe": recipe.as_dict(),
    }
    return _write(recipe, bank, metrics)


def _examples(recipe: Recipe) -> tuple[list[Example], list[Example]]:
    prompt, answer = Template(recipe.prompt), Template(recipe.answer)
    if not answer.fields:
        raise DataError(f"the answer template {recipe.answer!r} names no field; write one as {{field}}.")
    rows = read_rows(recipe.data, recipe.num_examples)
    if recipe.eval_data is not None:
        held_out = read_rows(recipe.eval_data)
    else:
        held_out = rows[9::10][:MOST_HELD_OUT]
        taken = {where for where, _ in held_out}
        rows = [row for row in rows if row[0] not in taken]
    if not held_out:
        raise DataError(f"'{recipe.data}' has fewer than ten examples, too few to hold some out; give --eval-data.")
    return fill_templates(rows, prompt, answer), fill_templates(held_out, prompt, answer)


def _check_room(room: Room, examples: Sequence[Example], rows: Sequence[dict[str, list[int]]]) -> None:
    for example, row in zip(examples, rows, strict=True):
        answer = sum(label != IGNORED_LABEL for label in row["labels"])
        prompt = len(row["input_ids"]) - (0 if room.is_encoder_decoder else answer)
        room.check(prompt, answer, f"the example {example.prompt[:60]!r} or the prefix")


def _check_room_to_write(room: Room, encoder: ExampleTokenizer, held_out: Sequence[Example]) -> None:
    """Refuse held-out prompts that leave no room for the longest answer, which each of them may get."""
    longest = longest_answer(encoder, held_out)
    for example in held_out:
        room.check(
            len(encoder.prompt_ids(example.prompt)), longest, f"the example {example.prompt[:60]!r} or the prefix"
        )


def _warn_of_unknown(
    examples: Sequence[Example], rows: Sequence[dict[str, list[int]]], encoder: ExampleTokenizer, console: Console
) -> None:
    """Announce answers that the tokenizer cannot spell: they teach the prefix to write unknown tokens."""
    lost = [example for example, row in zip(examples, rows, strict=True) if not encoder.can_write(row)]
    if lost:
        console.print(
            f"warning: {len(lost):,} of {len(examples):,} answers hold signs that the tokenizer does not know, such as "
            f"{lost[0].answer[:60]!r}; leave them out or spell them in its signs.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _score(
    recipe: Recipe,
    model: PreTrainedModel,
    encoder: ExampleTokenizer,
    examples: Sequence[Example],
    rows: Sequence[dict[str, list[int]]],
) -> dict[str, float]:
    score = {"loss": loss_per_token(model, rows, padding_id(encoder), recipe.batch_size)}
    if recipe.exact_match:
        score["exact_match"] = exact_match(model, encoder, examples)
    return score


def _fit(
    recipe: Recipe, bank: PrefixBank, encoder: ExampleTokenizer, rows: Sequence[dict[str, list[int]]], console: Console
) -> tuple[list[dict[str, float]], float]:
    """Run the Trainer; return loss by step and tokens a second."""
    progress = ProgressCallback(console, tokens_per_epoch=sum(len(row["input_ids"]) for row in rows))
    # Trainer warns that it hands the tokenizer's special ids to the model; here they are the model's own already.
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    trainer = PrefixTrainer(
        bank,
        recipe.name,
        args=_arguments(recipe),
        train_dataset=list(rows),
        data_collator=Collator(padding_id(encoder)),
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    finally:
        progress.close()
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
