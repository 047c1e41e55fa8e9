"""Models on the meta device, which have shapes and no numbers, for commands that need no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

from antefix.sources import reporting_failure, source_of

_MADE_BY: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "SEQ_CLS": (AutoModelForSequenceClassification, modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "TOKEN_CLS": (AutoModelForTokenClassification, modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    "QUESTION_ANS": (AutoModelForQuestionAnswering, modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    "FEATURE_EXTRACTION": (AutoModel, modeling_auto.MODEL_MAPPING_NAMES),
}
"""What makes the base of one of PEFT's tasks, and the names of the classes; other bases write text or fill it in."""


def shapes_only(name: str, task_type: str | None = None) -> PreTrainedModel:
    """Build a model from its configuration alone, on the meta device.

    Nothing in it may ask for a number, so its attention is eager and it knows no padding. It is in bf16, because on the
    meta device experts are multiplied in no other dtype. `name` is a hub name, a folder, a config.json, or 'embedded',
    `task_type` one of PEFT's, as models for different tasks have their attention at different paths. Raises
    `ConfigError` if it cannot be loaded.
    """
    with reporting_failure("configuration", name):
        config = AutoConfig.from_pretrained(source_of(name))
        _rotate_by_one_rule(config)
        auto: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForMaskedLM
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else auto
        auto, _ = _MADE_BY.get(task_type or "", (auto, {}))
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    model.config.get_text_config(decoder=True).pad_token_id = None
    model.eval()
    return model


def task_of(base_class: object) -> str | None:
    """Return PEFT's name of the task that a class of models is made for; None if it writes or fills in text."""
    return next((task for task, (_, names) in _MADE_BY.items() if base_class in names.values()), None)


def _rotate_by_one_rule(config: PreTrainedConfig) -> None:
    """Take rotations that look at the positions' numbers out of a configuration; shapes are the same without them."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    for parameters in [rope, *rope.values()]:
        if isinstance(parameters, dict) and parameters.get("rope_type") in ("longrope", "dynamic"):
            parameters["rope_type"] = "default"
