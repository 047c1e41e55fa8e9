"""What is compared: prefixes of antefix and of PEFT, variants of them, LoRA, and full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_past_key_values
from torch import nn
from transformers import PreTrainedTokenizerBase

import antefix
from antefix.initialize import DEFAULT_TEXT, initial_prefix
from benchmarks.quality.decoupled import decouple
from benchmarks.quality.scaled import ScaledPrefix

NAME = "p"
HEAD_RATE = 1e-3
"""The learning rate of a classifier's head, which a prefix's own rate would throw off."""


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
    """A model that can be trained; a classifier's head trains at `HEAD_RATE`, or with `one_rate` as all the rest."""

    model: Any
    one_rate: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def head(self) -> list[nn.Parameter]:
        """What is trained of a classifier's head."""
        if not hasattr(self.model, "score"):
            return []
        shape = self.model.score.weight.shape  # (label, hidden), which nothing else has
        return [parameter for parameter in self.parameters if parameter.shape == shape]

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return what is trained by learning rate, as an optimiser takes it."""
        if self.one_rate:
            return [{"params": self.parameters, "lr": learning_rate}]
        head = {id(parameter) for parameter in self.head}
        rest = [parameter for parameter in self.parameters if id(parameter) not in head]
        return [{"params": rest, "lr": learning_rate}, {"params": self.head, "lr": HEAD_RATE}]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained, without the head of a classifier, which all methods train."""
        return sum(parameter.numel() for parameter in self.parameters) - sum(part.numel() for part in self.head)


def _prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    bank = antefix.attach(model)
    heads = ("score",) if hasattr(model, "score") else ()
    one_rate = settings.pop("one_rate", False)
    bank.add(NAME, antefix.PrefixConfig(**settings, trainable_modules=heads), tokenizer=tokenizer)
    return Adapted(model, one_rate)


def _deep_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    adapted = _prefix(model, tokenizer, {**settings, "reparameterization": "mlp"})
    for encoder in model.modules():
        if isinstance(encoder, antefix.PrefixEncoder):
            transform: Any = encoder.transform
            first, activation, last = transform
            width = first.out_features
            encoder.transform = nn.Sequential(first, activation, nn.Linear(width, width), nn.Tanh(), last)
    return adapted


def _scaled_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    model.requires_grad_(False)
    bank = antefix.attach(model)
    of_config = {name: settings.pop(name) for name in ("num_virtual_tokens", "num_frozen_tokens") if name in settings}
    config = antefix.PrefixConfig(**of_config)
    initial = initial_prefix(model, tokenizer, config, config.select(bank.sites))
    assert initial is not None, "an MLP alone draws its own start"
    model.scaled = ScaledPrefix(initial, config, **settings)
    bank.add(NAME, model.scaled)
    bank.activate(NAME)
    return Adapted(_with_head(model))


def _decoupled(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    decouple(model)
    return Adapted(_with_head(model))


def _peft_prefix(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    from_text = settings.pop("from_text", False)
    with torch.no_grad():
        cache = model.base_model(**tokenizer(DEFAULT_TEXT, return_tensors="pt")).past_key_values if from_text else None
    peft: Any = get_peft_model(model, PrefixTuningConfig(task_type=_task_type(model), **settings))
    if cache is not None:  # its own way from a text cannot do without a model that generates
        initialize_kv_prefix_from_past_key_values(peft, past_key_values=cache)
    return Adapted(peft)


def _lora(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    modules = settings.pop("target_modules")
    settings["target_modules"] = modules if isinstance(modules, str) else list(modules)
    settings["lora_alpha"] = 2 * settings["r"]
    return Adapted(get_peft_model(model, LoraConfig(task_type=_task_type(model), **settings)))


def _full(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(True))


def _head_alone(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(_with_head(model.requires_grad_(False)), one_rate=True)


def _bare(model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Adapted:
    return Adapted(model.requires_grad_(False))


KINDS = {
    "antefix": _prefix,
    "deep": _deep_prefix,
    "scaled": _scaled_prefix,
    "decoupled": _decoupled,
    "peft": _peft_prefix,
    "lora": _lora,
    "full": _full,
    "head": _head_alone,
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
