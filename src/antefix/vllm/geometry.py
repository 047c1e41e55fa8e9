"""What vLLM's cache holds for a model, as antefix needs it: layers, heads, blocks, and how far a prefix is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from antefix.errors import UnsupportedModelError


@dataclass(frozen=True)
class CachedLayer:
    """One attention layer of this worker: its module's name and number, its group of blocks, and this rank's heads."""

    name: str
    layer: int
    group: int
    block_size: int
    num_key_value_heads: int
    head_size: int


def cached_layers(config: KVCacheConfig) -> list[CachedLayer]:
    """Return the attention layers that have a cache here, in the order of their numbers."""
    return sorted(
        (
            CachedLayer(name, extract_layer_index(name), group, spec.block_size, spec.num_kv_heads, spec.head_size)
            for group, name, spec in _specs(config)
        ),
        key=lambda layer: layer.layer,
    )


def room_with_prefix(config: KVCacheConfig, max_model_len: int) -> int:
    """Return how many positions a request with a prefix may have: the context, or the smallest sliding window.

    Within a window every token sees the whole prefix, in vLLM as in antefix; past it, vLLM would drop the prefix from
    those layers, and antefix does not.
    """
    windows: list[int | None] = [getattr(spec, "sliding_window", None) for _, _, spec in _specs(config)]
    return min([max_model_len, *(window for window in windows if window is not None)])


def check_engine(vllm_config: Any, config: KVCacheConfig) -> None:
    """Raise `UnsupportedModelError` unless every layer keeps plain keys and values that a prefix can be written to."""
    for _, name, spec in _specs(config):
        if type(spec) not in (FullAttentionSpec, SlidingWindowSpec):
            raise UnsupportedModelError(
                f"vLLM keeps a {type(spec).__name__} for '{name}', not keys and values of single tokens, so no prefix "
                "can be written there; `antefix generate` and the library may run this model."
            )
        if getattr(spec, "attention_chunk_size", None) is not None:
            raise UnsupportedModelError(f"'{name}' attends in chunks, which would hide a prefix from all later ones.")
    _check_rotation(vllm_config.model_config)
    parallel = vllm_config.parallel_config
    for setting in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, setting, 1) > 1:
            raise UnsupportedModelError(f"{setting} spreads a prompt over ranks, where antefix cannot place a prefix.")
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method != "ngram":
        raise UnsupportedModelError(
            f"speculative decoding by '{speculative.method}' is not known to leave answers with a prefix as they are; "
            "use ngram."
        )


def _check_rotation(model_config: Any) -> None:
    """Refuse rotations that Transformers chooses by a sequence's length, and vLLM once for all lengths."""
    rope = getattr(model_config.hf_text_config, "rope_parameters", None) or {}
    of_layers = [of_kind for of_kind in rope.values() if isinstance(of_kind, dict) and "rope_type" in of_kind]
    for parameters in of_layers or [rope]:
        if parameters.get("rope_type") == "dynamic":
            raise UnsupportedModelError("vLLM rotates the keys of 'dynamic' models by another rule than Transformers.")
        if parameters.get("rope_type") == "longrope":
            original = parameters["original_max_position_embeddings"]
            if model_config.max_model_len > original:
                raise UnsupportedModelError(
                    f"with more than {original} positions vLLM rotates all keys of this model in another way than "
                    f"Transformers does in shorter texts; set --max-model-len to {original} or less."
                )


def _specs(config: KVCacheConfig) -> Iterator[tuple[int, str, Any]]:
    for group, held in enumerate(config.kv_cache_groups):
        spec = held.kv_cache_spec
        for name in held.layer_names:
            yield group, name, spec.kv_cache_specs[name] if isinstance(spec, UniformTypeKVCacheSpecs) else spec
