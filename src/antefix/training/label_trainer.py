"""`LabelTrainer`: PrefixTrainer for losses that are a mean over the labels of a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from antefix.training.tokens import IGNORED_LABEL
from antefix.training.trainer import PrefixTrainer


class LabelTrainer(PrefixTrainer):
    """Train by the mean over the labels of a step, also where it takes batches with more of them and with fewer.

    A mean of the means of batches, accumulated or on several processes, would weigh a label by the size of its batch.
    Only some models divide by the number of labels that Trainer counts, and signatures do not tell which.
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
        """Return the mean over the labels of a batch, as the batch's share in the mean over all of its step."""
        mean = self.batch_mean(model, inputs)
        if num_items_in_batch is None:
            return mean
        share = inputs["labels"].ne(IGNORED_LABEL).sum() / num_items_in_batch
        # Processes take the mean of their gradients; labels counted over all of them want the sum.
        return mean * (share * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1))

    def batch_mean(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Return the mean over the labels of a batch, by default the model's own loss."""
        loss: Tensor = super().compute_loss(model, inputs)
        return loss
