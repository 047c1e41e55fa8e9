"""How far back the windows and chunks of a model's attention reach."""

from __future__ import annotations

from typing import Any

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""By what a layer is called in a configuration: what says there how many tokens it sees."""


def attention_window(config: Any) -> int | None:
    """Return how many tokens a model's windows or chunks hold at least, by its text config; None if all see all."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    sizes: list[int | None] = [getattr(config, name, None) for kind, name in _WINDOWS.items() if kind in kinds]
    return min((size for size in sizes if size is not None), default=None)
