"""Running a trainer of one prefix by its settings, with a progress bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from antefix.errors import ConfigError
from antefix.training.progress import ProgressCallback
from antefix.training.schedule import Schedule
from antefix.training.trainer import PrefixTrainer


def fit(
    make_trainer: Callable[..., PrefixTrainer],
    schedule: Schedule,
    output: str,
    tokens_per_epoch: int,
    console: Console,
    checkpoint: Path | None = None,
) -> tuple[list[dict[str, float]], float]:
    """Run the trainer that `make_trainer(args=..., callbacks=...)` returns; return loss by step and tokens per second.

    Checkpoints are written in the folder `output`; it goes on from the folder `checkpoint`, if it is given.
    """
    progress = ProgressCallback(console, tokens_per_epoch)
    try:
        trainer = make_trainer(args=_arguments(schedule, output), callbacks=[progress, LogsWhatItSaves()])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    history = [{"step": log["step"], "loss": float(log["loss"])} for log in trainer.state.log_history if "loss" in log]
    return history, progress.tokens_per_second


class LogsWhatItSaves(TrainerCallback):
    """Logs the loss at each checkpoint, where its mean begins anew, so that a resumed run logs the same curve."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log if Trainer is about to save."""
        control.should_log = control.should_log or control.should_save


def _arguments(schedule: Schedule, output: str) -> TrainingArguments:
    try:
        args = TrainingArguments(
            output_dir=output,
            learning_rate=schedule.learning_rate,
            num_train_epochs=schedule.epochs,
            per_device_train_batch_size=schedule.batch_size,
            gradient_accumulation_steps=schedule.gradient_accumulation_steps,
            weight_decay=schedule.weight_decay,
            warmup_steps=schedule.warmup_ratio,
            max_grad_norm=schedule.max_grad_norm,
            lr_scheduler_type="cosine",
            seed=schedule.seed,
            logging_steps=0.01,
            logging_nan_inf_filter=False,
            save_steps=0.1,
            save_total_limit=1,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            ddp_find_unused_parameters=False,
            use_cpu=not torch.accelerator.is_available(),  # else processes on a CPU would not find each other
            report_to="none",
        )
    except ImportError as error:
        raise ConfigError('training needs accelerate: pip install "antefix[train]".') from error
    args._n_gpu = min(args.n_gpu, 1)  # Trainer would copy the model to further GPUs of this process
    return args
