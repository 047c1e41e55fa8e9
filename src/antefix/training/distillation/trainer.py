"""`DistillationTrainer`: a LabelTrainer whose loss is the distance to a teacher on what the teacher wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from antefix.training.distillation.lessons import Lesson
from antefix.training.distillation.settings import Objective
from antefix.training.distillation.targets import Targets
from antefix.training.label_trainer import LabelTrainer
from antefix.training.tokens import IGNORED_LABEL, pad_inputs, pad_rows


@dataclass(frozen=True)
class Collator:
    """Makes batches of lessons: `input_ids`, `attention_mask` and `labels` `(row, token)`, and the targets.

    Labels are the ids of the tokens that were written.
    """

    pad_token_id: int

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, Tensor]:
        """Return lessons as one batch, padded on the right."""
        targets = Targets.joined([lesson.targets for lesson in lessons])
        inputs = pad_inputs([lesson.ids for lesson in lessons], self.pad_token_id)
        is_written = pad_rows([lesson.is_written for lesson in lessons], 0).bool()
        return {
            **inputs,
            "labels": inputs["input_ids"].where(is_written, IGNORED_LABEL),
            **vars(targets),
        }


def token_losses(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[Objective, Tensor]:
    """Return for each written token of a batch its divergence from the teacher and negative log-likelihood, in nats."""
    labels = batch["labels"][:, 1:]
    written = labels != IGNORED_LABEL
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False).logits[:, :-1][written]
    targets = Targets(**{part.name: batch[part.name] for part in fields(Targets)})
    tokens = cross_entropy(logits.float(), labels[written], reduction="none")
    return {"kl": targets.divergence(logits), "next-token": tokens}


class DistillationTrainer(LabelTrainer):
    """Trains a prefix on lessons, by the divergence from the teacher or by the next token alone."""

    def __init__(self, *arguments: Any, objective: Objective, **trainer_arguments: Any) -> None:
        super().__init__(*arguments, **trainer_arguments)
        self.objective: Objective = objective

    def batch_mean(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the mean loss over the written tokens of a batch."""
        return token_losses(model, inputs)[self.objective].mean()


def measure(model: PreTrainedModel, lessons: Sequence[Lesson], collate: Collator, batch_size: int) -> dict[str, float]:
    """Return mean `loss` and `kl` per token, in nats, with whatever prefix the bank has in use."""
    model.eval()
    sums, count = {"next-token": 0.0, "kl": 0.0}, 0
    with torch.no_grad():
        for start in range(0, len(lessons), batch_size):
            batch = collate(lessons[start : start + batch_size])
            losses = token_losses(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
            count += len(losses["kl"])
            sums = {name: total + losses[name].sum().item() for name, total in sums.items()}  # type: ignore[index]
    return {"loss": sums["next-token"] / count, "kl": sums["kl"] / count}
