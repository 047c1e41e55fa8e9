"""A prefix in the attention equals the same prefix in a `DynamicCache`, which is how everybody else holds it."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

import antefix
from antefix.prefix import Prefix
from tests.conftest import build_model, draw_ids

TOLERANCE = 1e-4  # fp32 rounding is about 1e-6 here; a prefix one position off is off by more than 1e-2


def as_cache(prefix: Prefix, batch: int) -> DynamicCache:
    """Hold a prefix the way PEFT does: copied for every row, in the cache."""
    cache = DynamicCache()
    for site in prefix.sites:
        key, value = (part[site.path].expand(batch, -1, -1, -1).clone() for part in (prefix.keys, prefix.values))
        cache.update(key, value, site.layer)
    return cache


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoder_equals_cache(name: str, implementation: str) -> None:
    model = build_model(name, attn_implementation=implementation)
    ids = draw_ids(3, 6)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(num_virtual_tokens=5, init="random"))
    actual = model(ids).logits
    bank.deactivate()
    cache = as_cache(bank.prefix("p"), 3)
    expected = model(ids, past_key_values=cache, attention_mask=torch.ones(3, 11, dtype=torch.long)).logits
    assert (actual - expected).abs().max() < TOLERANCE
    assert (actual - model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_decoder_of_an_encoder_decoder_equals_cache(name: str, implementation: str) -> None:
    model = build_model(name, attn_implementation=implementation)
    ids, decoder_ids = draw_ids(3, 6), draw_ids(3, 4, seed=1)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(num_virtual_tokens=5, init="random", sites=("decoder",)))
    actual = model(input_ids=ids, decoder_input_ids=decoder_ids).logits
    bank.deactivate()
    cache = EncoderDecoderCache(as_cache(bank.prefix("p"), 3), DynamicCache())
    encoded = BaseModelOutput(model.get_encoder()(ids).last_hidden_state)
    expected = model(encoder_outputs=encoded, decoder_input_ids=decoder_ids, past_key_values=cache).logits
    assert (actual - expected).abs().max() < TOLERANCE
    assert (actual - model(input_ids=ids, decoder_input_ids=decoder_ids).logits).abs().max() > 1e-2


def test_gradients_equal_those_through_the_cache() -> None:
    model = build_model("llama")
    ids = draw_ids(2, 6)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(num_virtual_tokens=5, init="random"))
    model(input_ids=ids, labels=ids).loss.backward()
    (encoder,) = model.antefix_prefixes
    actual = encoder.embedding.weight.grad.clone()
    encoder.embedding.weight.grad = None
    bank.deactivate()
    cache = DynamicCache()
    for site in bank.sites:
        key, value = encoder.keys_and_values()[site.path]
        cache.update(key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1), site.layer)
    mask = torch.ones(2, 11, dtype=torch.long)
    model(input_ids=ids, labels=ids, past_key_values=cache, attention_mask=mask).loss.backward()
    assert actual.abs().max() > 1e-3
    torch.testing.assert_close(actual, encoder.embedding.weight.grad, atol=1e-6, rtol=1e-4)


def test_t5_decodes_step_by_step_as_in_one_forward() -> None:
    # Distances to the prefix must be counted from the first token of the answer, not from the current one.
    model = build_model("t5")
    ids, decoder_ids = draw_ids(2, 6), draw_ids(2, 7, seed=1)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(num_virtual_tokens=5, init="random"))
    whole = model(input_ids=ids, decoder_input_ids=decoder_ids).logits
    encoded = BaseModelOutput(model.get_encoder()(ids).last_hidden_state)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    steps = [
        model(encoder_outputs=encoded, decoder_input_ids=decoder_ids[:, i : i + 1], past_key_values=cache).logits
        for i in range(7)
    ]
    assert (torch.cat(steps, 1) - whole).abs().max() < TOLERANCE
