"""What is compared: prefixes of antefix and of PEFT, variants of them, LoRA, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

import antefix
from antefix.bank import PrefixBank
from antefix.initialize import initial_prefix
from benchmarks.quality.decoupled import decouple
from benchmarks.quality.scaled import ScaledPrefix

NAME = "p"


@dataclass(frozen=True)
class Method:
    """A way to adapt a base, with its own settings and the learning rate that it trains at.

    With `averaged`, what is measured is the average of the weights over the last steps, each step's counting less by
    that factor than the next one's.
    """

    kind: str
    learning_rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    averaged: float = 0.0

    def apply(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Adapted:
        """Make a base trainable in this way."""
        return KINDS[self.kind](model, tokenizer, dict(self.settings))


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


def _scaled_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    model.requires_grad_(False)
    bank = antefix.attach(model)
    config = antefix.PrefixConfig(num_virtual_tokens=settings.pop("num_virtual_tokens"))
    initial = initial_prefix(model, tokenizer, config, config.select(bank.sites))
    model.scaled = ScaledPrefix(initial, config, **settings)
    bank.add(NAME, model.scaled)
    bank.activate(NAME)
    return Adapted(_with_head(model), bank)


def _decoupled(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    decouple(model)
    return Adapted(_with_head(model))


def _peft_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(get_peft_model(model, PrefixTuningConfig(task_type=_task_type(model), **settings)))


def _lora(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    modules = settings.pop("target_modules")
    settings["target_modules"] = modules if isinstance(modules, str) else list(modules)
    settings["lora_alpha"] = 2 * settings["r"]
    return Adapted(get_peft_model(model, LoraConfig(task_type=_task_type(model), **settings)))


def _full(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(True))


def _bare(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(False))


KINDS = {
    "antefix": _prefix,
    "scaled": _scaled_prefix,
    "decoupled": _decoupled,
    "peft": _peft_prefix,
    "lora": _lora,
    "full": _full,
    "base": _bare,
}


def _with_head(model: Any) -> Any:
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    return model


def _task_type(model: Any) -> str:
    if hasattr(model, "score"):
        return "SEQ_CLS"
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
