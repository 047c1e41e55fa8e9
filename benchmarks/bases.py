"""The shapes of the models that are measured."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig

_COMMON: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 16384}
SMALL = LlamaConfig(
    vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, **_COMMON,
)  # fmt: skip
"""What a CPU is measured on, in fp32."""
BILLION = LlamaConfig(
    vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, **_COMMON,
)  # fmt: skip
"""What a GPU is measured on, in bf16: the shape of TinyLlama, with random weights."""
