"""Base models that write answers to prompts, loaded with their tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from antefix.bank import PrefixBank, attach
from antefix.embedded import model_path
from antefix.errors import ConfigError, UnsupportedModelError
from antefix.training.data import ExampleTokenizer
from antefix.training.launch import local_rank


def load_base(
    name: str, answer_tokenizer: str | None = None, max_length: int = 1024
) -> tuple[PreTrainedModel, ExampleTokenizer]:
    """Load a base model, causal or encoder-decoder, and what turns text into its ids; 'embedded' is the one inside.

    Half precision on a GPU where the checkpoint has it, fp32 on a CPU. Raises `ConfigError` where it cannot be loaded.
    """
    source = str(model_path()) if name == "embedded" else name
    on_gpu = torch.cuda.is_available()
    try:
        config = AutoConfig.from_pretrained(source)
        auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = auto.from_pretrained(source, dtype="auto" if on_gpu else torch.float32)
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise ConfigError(f"the model '{name}' cannot be loaded: {_on_one_line(error)}") from error
    for_answers = _load_tokenizer(answer_tokenizer) if answer_tokenizer else tokenizer
    encoder = ExampleTokenizer(tokenizer, for_answers, config.is_encoder_decoder, max_length)
    return model.to(f"cuda:{local_rank()}" if on_gpu else "cpu").eval(), encoder


def attach_writer(model: PreTrainedModel) -> PrefixBank:
    """Attach to a model that is to write; raises `UnsupportedModelError` for one that reads in both directions."""
    bank = attach(model)
    if all(site.kind == "encoder" for site in bank.sites):
        raise UnsupportedModelError(
            f"{type(model).__name__} of this configuration reads in both directions, so it cannot learn to write "
            "answers; take a causal model or an encoder-decoder."
        )
    return bank


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the tokenizer '{name}' cannot be loaded: {_on_one_line(error)}") from error
    return tokenizer


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
