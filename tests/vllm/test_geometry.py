"""Engines whose caches or rotations a prefix does not fit are refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)

from antefix.errors import UnsupportedModelError
from antefix.vllm.geometry import check_engine, room_with_prefix

SHAPE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
FULL = FullAttentionSpec(**SHAPE)
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [2.0] * 16,
}
PHI3 = Phi3Config(
    hidden_size=64, num_attention_heads=2, max_position_embeddings=512, original_max_position_embeddings=128,
    rope_parameters=LONGROPE,
)  # fmt: skip


def engine(config: Any = None, max_model_len: int = 256, method: str | None = None, **parallel: int) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=config or LlamaConfig(), max_model_len=max_model_len),
        parallel_config=SimpleNamespace(**parallel),
        speculative_config=SimpleNamespace(method=method) if method else None,
    )


def caches(*specs: Any) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"model.layers.{i}.self_attn.attn"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups)


@pytest.mark.parametrize(
    ("vllm_config", "config", "about"),
    [
        (engine(), caches(MLAAttentionSpec(**SHAPE | {"num_kv_heads": 1})), "MLAAttentionSpec"),
        (engine(), caches(FULL, ChunkedLocalAttentionSpec(**SHAPE, attention_chunk_size=64)), "ChunkedLocal"),
        (engine(), caches(FullAttentionSpec(**SHAPE, attention_chunk_size=64)), "chunks"),
        (engine(decode_context_parallel_size=2), caches(FULL), "decode_context_parallel_size"),
        (engine(prefill_context_parallel_size=2), caches(FULL), "prefill_context_parallel_size"),
        (engine(method="eagle"), caches(FULL), "eagle"),
        (engine(LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0})), caches(FULL), "dynamic"),
        (engine(PHI3, max_model_len=129), caches(FULL), "--max-model-len to 128"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_prefix_does_not_fit(vllm_config: Any, config: KVCacheConfig, about: str) -> None:
    with pytest.raises(UnsupportedModelError, match=about):
        check_engine(vllm_config, config)


@pytest.mark.parametrize(
    "vllm_config", [engine(), engine(method="ngram"), engine(PHI3, max_model_len=128), engine(Gemma3TextConfig())]
)
def test_what_it_fits(vllm_config: Any) -> None:
    check_engine(vllm_config, caches(FULL, SlidingWindowSpec(**SHAPE, sliding_window=64)))


def test_the_smallest_window_is_the_room() -> None:
    windows = [SlidingWindowSpec(**SHAPE, sliding_window=window) for window in (128, 64)]
    assert room_with_prefix(caches(FULL, *windows), 256) == 64
    assert room_with_prefix(caches(FULL, *windows), 32) == 32
    assert room_with_prefix(caches(FULL), 256) == 256
    assert room_with_prefix(caches(FullAttentionSpec(**SHAPE, sliding_window=96)), 256) == 96
