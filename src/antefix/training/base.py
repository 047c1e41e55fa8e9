"""Base models that write answers to prompts, loaded with their tokenizers."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from antefix.bank import PrefixBank, attach
from antefix.errors import UnsupportedModelError
from antefix.sources import reporting_failure, source_of
from antefix.training.launch import local_rank
from antefix.training.tokens import TextPreprocessor


def load_base(name: str, answer_tokenizer: str | None = None) -> tuple[PreTrainedModel, TextPreprocessor]:
    """Load a base model, causal or encoder-decoder, and what turns text into its ids; 'embedded' is the one inside.

    Weights have the checkpoint's dtype on a GPU, fp32 on a CPU. Raises `ConfigError` if the model cannot be loaded.
    """
    with reporting_failure("model", name):
        is_encoder_decoder = bool(AutoConfig.from_pretrained(source_of(name)).is_encoder_decoder)
    tokenizer = load_tokenizer(name, "model")
    for_answers = load_tokenizer(answer_tokenizer) if answer_tokenizer else tokenizer
    auto: Any = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    with reporting_failure("model", name):
        model: Any = named(auto.from_pretrained(source_of(name), **loading_dtype()), name)
    forget_added_padding(tokenizer, model.get_input_embeddings().num_embeddings)
    return on_device(model), TextPreprocessor(tokenizer, for_answers, is_encoder_decoder)


def load_tokenizer(name: str, of: str = "tokenizer") -> PreTrainedTokenizerBase:
    """Load a tokenizer, or that of a model; raises `ConfigError` if it cannot be loaded."""
    with reporting_failure(of, name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source_of(name))
    return tokenizer


def forget_added_padding(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Remove a padding token that was added to the tokenizer but not to the base; any token that exists can pad."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= num_embeddings:
        tokenizer.pad_token = None


def named(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return the model with the name it was asked for by, in place of the path it was loaded from."""
    model.config.name_or_path = name
    return model


def loading_dtype() -> dict[str, Any]:
    """Return the dtype to load weights in: the checkpoint's on a GPU, fp32 on a CPU."""
    return {"dtype": "auto" if torch.cuda.is_available() else torch.float32}


def on_device(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model in evaluation mode, on this process's GPU if there is one."""
    cast(Any, model).to(f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu")
    model.eval()
    return model


def attach_writer(model: PreTrainedModel) -> PrefixBank:
    """Attach to a model that is to write; raises `UnsupportedModelError` for one that reads in both directions."""
    bank = attach(model)
    if all(site.kind == "encoder" for site in bank.sites):
        raise UnsupportedModelError(
            f"{type(model).__name__} of this configuration reads in both directions, so it cannot learn to write "
            "answers; take a causal model or an encoder-decoder."
        )
    return bank
