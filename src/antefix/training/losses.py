"""Negative log-likelihoods of the answers, in nats, with whatever prefix the bank has in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from antefix.training.tokens import IGNORED_LABEL, Preprocessor


def answer_losses(model: PreTrainedModel, preprocessor: Preprocessor, features: Sequence[dict[str, Any]]) -> Tensor:
    """Return for each example its labelled tokens' summed loss and number, `(row, 2)`, computed as one batch."""
    batch = {name: tensor.to(model.device) for name, tensor in preprocessor.collate(features).items()}
    model.eval()
    with torch.no_grad():
        logits, labels = model(**batch, use_cache=False).logits.float(), batch["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1)], dim=1).cpu()
