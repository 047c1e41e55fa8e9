"""Small models of four kinds, built from configurations, and the folder of real data where there is one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

HAS_VLLM = importlib.util.find_spec("vllm") is not None  # make test-vllm has an environment with it
if not torch.cuda.is_available() and not HAS_VLLM:
    os.environ["TRITON_INTERPRET"] = "1"  # our kernel is read, not compiled; Triton asks when it is imported

import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

collect_ignore = [] if HAS_VLLM else ["vllm"]
collect_ignore += [] if torch.cuda.is_available() else ["gpu"]
VOCAB_SIZE = 67
SHARED = Path(os.environ.get("ANTEFIX_SHARED", Path(__file__).parents[2] / "shared"))


def build_model(name: str, **settings: object) -> PreTrainedModel:
    """Build a small model in evaluation mode, always with the same weights."""
    torch.manual_seed(1)
    common: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | settings
    if name == "llama":
        config = LlamaConfig(
            **common, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128,
        )  # fmt: skip
        model: PreTrainedModel = LlamaForCausalLM(config)
    elif name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(**common, n_embd=32, n_layer=3, n_head=4, n_positions=64))
    elif name == "t5":
        # heads * d_kv differs from d_model on purpose, as in Flan-T5.
        config = T5Config(
            **common, d_model=32, d_kv=10, d_ff=48, num_layers=2, num_heads=4,
            decoder_start_token_id=0, relative_attention_num_buckets=8, relative_attention_max_distance=12,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    elif name == "bart":
        config = BartConfig(
            **common, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
            decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
    else:
        raise ValueError(name)
    # Freshly initialised weights are so small that attention is flat; larger ones let a mistake show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model.eval()


def draw_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Draw token ids that are neither padding nor special."""
    return torch.randint(3, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))


def run(model: torch.nn.Module, rows: int = 2) -> torch.Tensor:
    """Return the logits of a few drawn tokens."""
    inputs = {"input_ids": draw_ids(rows, 5)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = draw_ids(rows, 4, seed=1)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()


@pytest.fixture
def shared() -> Path:
    """Return the folder of real data and trained models, or skip."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and trained models are not at {SHARED}; set ANTEFIX_SHARED to their folder")
    return SHARED
