"""`Schedule`: how long and how fast a prefix is trained, whatever it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from antefix.training.settings import check_above_zero, check_at_least, check_seed, check_share


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The settings of AdamW, its warm-up and its cosine, which every way to train a prefix has.

    A step takes `gradient_accumulation_steps` batches; `warmup_ratio` is the share of the steps in which the learning
    rate rises.
    """

    learning_rate: float = 0.1
    epochs: float = 3.0
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    max_grad_norm: float = 1.0
    seed: int = 0

    def check_schedule(self) -> None:
        """Raise `ConfigError` for settings that no training can have."""
        check_above_zero(self, "learning_rate", "epochs", "batch_size", "gradient_accumulation_steps", "max_grad_norm")
        check_at_least(0, self, "weight_decay")
        check_share(self, "warmup_ratio")
        check_seed(self.seed)
