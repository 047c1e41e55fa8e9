"""One run of the study: a method on a task, trained and measured."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.quality.corpus import general_text
from benchmarks.quality.methods import Adapted, Method
from benchmarks.quality.tasks import BATCH_SIZE, STEPS, Task, load

GENERAL_LENGTH, GENERAL_ROWS = 256, 24
"""How much general text tells what a method forgets."""


@dataclass(frozen=True)
class Run:
    """A method on a task, with so many examples, or all, and a seed; it is measured on `split`.

    It trains so many `times` as long as the task usually does.
    """

    task: str
    method: Method
    seed: int = 0
    num_examples: int | None = None
    split: str = "test"
    times: int = 1

    def __str__(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.method.settings.items())
        of = f"{self.task} {self.method.kind} {settings} lr={self.method.learning_rate:g} seed={self.seed}"
        of += f" steps={self.num_steps}"
        return f"{of} on {self.num_examples or 'all'} examples, {self.split}"

    @property
    def num_steps(self) -> int:
        """How many batches it trains on; few examples are not read as often."""
        return self.times * STEPS[self.task] // (1 if self.num_examples is None else 3)

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, as JSON has it."""
        found: dict[str, Any] = json.loads(json.dumps({**asdict(self), "steps": self.num_steps}))
        del found["times"]  # which the steps tell
        return found

    def execute(self) -> dict[str, Any]:
        """Train and measure; return scores, trained parameters, seconds and the training loss of each tenth."""
        torch.manual_seed(self.seed)
        task = load(self.task, self.num_examples, self.seed)
        adapted = self.method.apply(task.model, task.preprocessor.tokenizer)
        started = time.monotonic()
        curve = learn(self, task, adapted) if adapted.parameters else []
        seconds = time.monotonic() - started
        found = {
            "scores": task.score(adapted.model, self.split),
            "parameters": adapted.num_parameters,
            "seconds": round(seconds, 1),
            "curve": curve,
        }
        if self.task == "e2e":
            found["general_loss"] = general_loss(adapted, task.preprocessor.tokenizer)
        return found


def learn(run: Run, task: Task, adapted: Adapted) -> list[float]:
    """Train with AdamW without decay, 3 % warm-up and a cosine, clipped to 1; return the mean loss of each tenth."""
    steps, batch_size = run.num_steps, BATCH_SIZE[run.task]
    optimizer = torch.optim.AdamW(adapted.groups(run.method.learning_rate), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_schedule, steps=steps))
    average = [parameter.detach().clone() for parameter in adapted.parameters] if run.method.averaged else []
    order: list[int] = []
    rng = random.Random(run.seed)
    losses: list[float] = []
    adapted.model.train()
    for step in range(steps):
        while len(order) < batch_size:
            order += rng.sample(range(len(task.trained)), len(task.trained))
        rows, order = [task.trained[number] for number in order[:batch_size]], order[batch_size:]
        loss = adapted.model(**task.collate(rows)).loss
        loss.backward()
        nn.utils.clip_grad_norm_(adapted.parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        for mean, parameter in zip(average, adapted.parameters if average else (), strict=True):
            mean.lerp_(parameter.detach(), max(1 - run.method.averaged, 1 / (step + 1)))
    with torch.no_grad():
        for mean, parameter in zip(average, adapted.parameters if average else (), strict=True):
            parameter.copy_(mean)
    tenth = max(steps // 10, 1)
    return [round(sum(losses[start : start + tenth]) / tenth, 4) for start in range(0, steps - tenth + 1, tenth)]


def general_loss(adapted: Adapted, tokenizer: Any) -> float:
    """Return the loss, in nats per token, on text that has nothing to do with the task, with what was trained on."""
    ids = tokenizer(general_text(), add_special_tokens=False)["input_ids"][: GENERAL_LENGTH * GENERAL_ROWS]
    rows = torch.tensor(ids).view(GENERAL_ROWS, GENERAL_LENGTH)
    adapted.model.eval()
    with torch.no_grad():
        losses = [float(adapted.model(input_ids=part, labels=part).loss) for part in rows.split(8)]
    return sum(losses) / len(losses)


def _schedule(step: int, steps: int) -> float:
    warm_up = max(round(0.03 * steps), 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))
