"""Models without numbers, for commands that need no more than their geometry."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from antefix.embedded import model_path
from antefix.errors import ConfigError


def shapes_only(name: str) -> PreTrainedModel:
    """Build a model from its configuration alone, on the device that has shapes and no numbers.

    Its attention is eager and it knows no padding, because nothing may ask for a number; in bf16, experts have shapes
    there, too. `name` is a hub name, a folder, a config.json, or 'embedded'. Raises `ConfigError` where it cannot be
    loaded.
    """
    try:
        config = AutoConfig.from_pretrained(str(model_path()) if name == "embedded" else name)
        _rotate_by_one_rule(config)
        auto: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMaskedLM
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"the configuration '{name}' cannot be loaded: {' '.join(str(error).split())}") from error
    model.config.get_text_config(decoder=True).pad_token_id = None
    model.eval()
    return model


def _rotate_by_one_rule(config: PreTrainedConfig) -> None:
    """Take rotations that look at the positions' numbers out of a configuration; shapes are the same without them."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    for parameters in [rope, *rope.values()]:
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("longrope", "dynamic"):
            parameters["rope_type"] = "default"
