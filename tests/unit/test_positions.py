"""Where tokens stand: what a stack's inputs tell about those before them."""

from __future__ import annotations

import pytest
from transformers import DynamicCache, EncoderDecoderCache

from antefix.positions import cache_of
from tests.conftest import draw_ids


@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # Transformers renamed it in 5.24
def test_the_cache_is_found_under_any_name(name: str) -> None:
    for cache in (DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        assert cache_of({"input_ids": draw_ids(1, 2), "use_cache": True, name: cache}) is cache
    assert cache_of({"input_ids": draw_ids(1, 2), name: None}) is None
