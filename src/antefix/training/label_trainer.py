"""`LabelTrainer`: PrefixTrainer for losses that are a mean over the labels of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from antefix.training.tokens import IGNORED_LABEL
from antefix.training.trainer import PrefixTrainer


class LabelTrainer(PrefixTrainer):
    """Train by the mean loss over all labels of a step, even if its batches have different numbers of labels.

    The mean of the batches' means, accumulated or on several processes, would give labels in smaller batches more
    weight. Only some models divide by the number of labels that Trainer counts, and signatures do not tell which.
    """

    def __init__(self, *arguments: Any, **trainer_arguments: Any) -> None:
        super().__init__(*arguments, **trainer_arguments)
        self.model_accepts_loss_kwargs = True  # has Trainer count the labels of a step, and divide no loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        *unused: Any,
        num_items_in_batch: Tensor | int | None = None,
        **also_unused: Any,
    ) -> Tensor:
        """Return what a batch adds to the mean loss over all labels of its step."""
        mean = self.batch_mean(model, inputs)
        if num_items_in_batch is None:
            return mean
        share = inputs["labels"].ne(IGNORED_LABEL).sum() / num_items_in_batch
        # Processes average their gradients; if the labels are counted over all processes, the sum is wanted.
        return mean * (share * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1))

    def batch_mean(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the mean loss over the labels of a batch, by default the model's own."""
        loss: Tensor = super().compute_loss(model, inputs)
        return loss
