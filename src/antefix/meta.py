"""Models without numbers, for commands that need no more than their geometry."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from antefix.sources import reporting_failure, source_of


def shapes_only(name: str) -> PreTrainedModel:
    """Build a model from its configuration alone, on the device that has shapes and no numbers.

    Its attention is eager and it knows no padding, because nothing may ask for a number; in bf16, experts have shapes
    there, too. `name` is a hub name, a folder, a config.json, or 'embedded'. Raises `ConfigError` where it cannot be
    loaded.
    """
    with reporting_failure("configuration", name):
        config = AutoConfig.from_pretrained(source_of(name))
        _rotate_by_one_rule(config)
        auto: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMaskedLM
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    model.config.get_text_config(decoder=True).pad_token_id = None
    model.eval()
    return model


def _rotate_by_one_rule(config: PreTrainedConfig) -> None:
    """Take rotations that look at the positions' numbers out of a configuration; shapes are the same without them."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    for parameters in [rope, *rope.values()]:
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("longrope", "dynamic"):
            parameters["rope_type"] = "default"
