"""What is compared: prefixes of antefix and of PEFT, LoRA, and full fine-tuning; each makes a base trainable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

import antefix
from antefix.bank import PrefixBank

NAME = "p"


@dataclass(frozen=True)
class Method:
    """A way to adapt a base, with its own settings and the learning rate that it trains at."""

    kind: str
    learning_rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What tells this method from all others."""
        settings = " ".join(f"{name}={value}" for name, value in self.settings.items())
        return " ".join(part for part in (self.kind, settings, f"lr={self.learning_rate:g}") if part)

    def apply(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Adapted:
        """Make a base trainable in this way."""
        kinds = {"antefix": _prefix, "peft": _peft_prefix, "lora": _lora, "full": _full, "base": _bare}
        return kinds[self.kind](model, tokenizer, dict(self.settings))


@dataclass(frozen=True)
class Adapted:
    """A model that can be trained and its bank, if it has one."""

    model: Any
    bank: PrefixBank | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained, without the head of a classifier, which all methods train."""
        head = getattr(self.model, "score", None)
        trained = sum(parameter.numel() for parameter in self.parameters)
        return trained - head.weight.numel() if head is not None and trained else trained


def _prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    bank = antefix.attach(model)
    heads = ("score",) if hasattr(model, "score") else ()
    bank.add(NAME, antefix.PrefixConfig(**settings, trainable_modules=heads), tokenizer=tokenizer)
    return Adapted(model, bank)


def _peft_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(get_peft_model(model, PrefixTuningConfig(task_type=_task_type(model), **settings)))


def _lora(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    settings = {"lora_alpha": 2 * settings["r"], **settings}
    return Adapted(get_peft_model(model, LoraConfig(task_type=_task_type(model), **settings)))


def _full(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(True))


def _bare(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(False))


def _task_type(model: Any) -> str:
    if hasattr(model, "score"):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
