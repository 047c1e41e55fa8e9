"""Where tokens stand: what a stack's inputs tell about those before them."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

import antefix
from antefix.initialize import random_prefix
from antefix.positions import cache_of
from tests.conftest import build_model, draw_ids, run


@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # Transformers renamed it in 5.24
def test_the_cache_is_found_under_any_name(name: str) -> None:
    for cache in (DynamicCache(), EncoderDecoderCache(DynamicCache(), DynamicCache())):
        assert cache_of({"input_ids": draw_ids(1, 2), "use_cache": True, name: cache}) is cache
    assert cache_of({"input_ids": draw_ids(1, 2), name: None}) is None


def test_a_forward_interrupted_before_it_looks_its_positions_up_leaves_none_behind() -> None:
    model = build_model("bart")
    bank = antefix.attach(model)
    bank.add("p", random_prefix(bank.sites, 4))
    bare = run(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.get_decoder().embed_positions.register_forward_pre_hook(interrupt)
    with bank.use("p"), pytest.raises(KeyboardInterrupt):
        run(model)
    hook.remove()
    assert torch.equal(run(model), bare)
