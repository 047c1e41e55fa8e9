"""`ProgressCallback`: a bar on the terminal while the Trainer trains."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from antefix.errors import DivergedError


class ProgressCallback(TrainerCallback):
    """Shows a bar with loss, speed and time left, and keeps the speed, in tokens per second, for the report."""

    def __init__(self, console: Console, tokens_per_epoch: int) -> None:
        self.tokens_per_epoch = tokens_per_epoch
        self.tokens_per_second = 0.0
        self.started = 0.0
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("training", total=None, loss="-", speed=0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock and the bar."""
        self.started = time.monotonic()
        self.epochs_before = state.epoch or 0.0
        self.progress.update(self.task, total=state.max_steps)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        epochs = (state.epoch or 0.0) - self.epochs_before
        self.tokens_per_second = epochs * self.tokens_per_epoch / (time.monotonic() - self.started)
        self.progress.update(self.task, completed=state.global_step, speed=self.tokens_per_second)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest loss; raises `DivergedError` if it is NaN or infinite."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(float(logs["loss"])):
            raise DivergedError(
                f"training diverged: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate, "
                f"which is {args.learning_rate:g}."
            )
        self.progress.update(self.task, loss=f"{float(logs['loss']):.3f}")

    def close(self) -> None:
        """Stop the bar, even if training was interrupted."""
        self.progress.stop()
