"""Models without numbers have the sites of those with numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config

import antefix
from antefix.meta import shapes_only
from tests.parity.families import FAMILIES

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
CONFIGS = {
    "plain": LlamaConfig(**TINY),
    "dynamic": LlamaConfig(**TINY, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "longrope": Phi3Config(
        **TINY,
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **FACTORS},
    ),
    "a rotation for each kind of layer": Gemma3TextConfig(**TINY, query_pre_attn_scalar=8),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_sites_are_the_same(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    model.config.save_pretrained(tmp_path)
    assert antefix.discover_sites(shapes_only(str(tmp_path))) == antefix.discover_sites(model)


def test_a_model_that_looks_at_numbers_says_so(tmp_path: Path) -> None:
    """Its masks are made from the token ids that are padding, whatever the configuration says."""
    FAMILIES["T5Gemma"].build().config.save_pretrained(tmp_path)
    with pytest.raises(antefix.UnsupportedModelError, match="T5GemmaForConditionalGeneration looks at numbers"):
        antefix.attach(shapes_only(str(tmp_path)))
