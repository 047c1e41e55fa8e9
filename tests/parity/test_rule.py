"""The rule: a prefix behaves as P tokens standing before the first real token. One test a consequence, all families."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import antefix
from antefix.initialize import token_prefix
from antefix.prefix import Prefix
from tests.parity.compare import assert_close, assert_far, attach, logits
from tests.parity.conftest import over
from tests.parity.families import REFUSED, SMALL, Family, draw_ids
from tests.parity.reference import register_reference

LONG = 9
"""Tokens of text, more than the windows of the families with windows, which are 6 or 8."""


def after(text: Tensor, ids: Tensor) -> Tensor:
    return torch.cat([text.expand(len(ids), -1), ids], dim=1)


@over("decoder", "encoder", "encoder-decoder")
def test_text_in_context(family: Family) -> None:
    model, reader = family.build(), family.build()
    reader.set_attn_implementation(register_reference(LONG))
    text, inputs = draw_ids(1, LONG, seed=7), family.draw_inputs(length=8)
    read = {name: after(text, ids) for name, ids in inputs.items()}
    expected = logits(reader, **read, use_cache=False)[:, LONG:]
    bank = attach(family, model)
    bank.add("text", token_prefix(model, text, bank.sites))
    with bank.use("text"):
        assert_close(logits(model, **inputs), expected)
    assert_far(logits(model, **inputs), expected)


def as_cache(model: PreTrainedModel, prefix: Prefix, batch: int) -> DynamicCache:
    """Hold a prefix the way PEFT does: copied for every row, in the cache."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for site in prefix.sites:
        key, value = (part[site.path].expand(batch, -1, -1, -1).clone() for part in (prefix.keys, prefix.values))
        cache.update(key, value, site.layer)
    return cache


@over("decoder", "encoder-decoder")
def test_cache_route(family: Family) -> None:
    # Short enough for every window, because in a cache the prefix falls out of it.
    model = family.build()
    inputs = family.draw_inputs(length=4)
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(2, init="random", sites=("decoder",)))
    actual = logits(model, **inputs)
    bank.deactivate()
    cache: Any = as_cache(model, bank.prefix("p"), 2)
    mask = torch.ones(2, 6, dtype=torch.long)
    if family.group == "encoder-decoder":
        encoded = BaseModelOutput(model.get_encoder()(inputs["input_ids"]).last_hidden_state)
        cached = {"decoder_input_ids": inputs["decoder_input_ids"], "encoder_outputs": encoded}
        expected = logits(
            model, **cached, decoder_attention_mask=mask, past_key_values=EncoderDecoderCache(cache, DynamicCache())
        )
    else:
        expected = logits(model, **inputs, attention_mask=mask, past_key_values=cache)
    assert_close(actual, expected)
    assert_far(actual, logits(model, **inputs))


@over("decoder", "encoder", "encoder-decoder", "vision-language")
def test_padding(family: Family) -> None:
    model = family.build()
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    inputs = family.draw_inputs()
    expected = logits(model, **inputs)
    of_tokens = {name: inputs[name] for name in ("input_ids", "token_type_ids", "mm_token_type_ids") if name in inputs}
    of_tokens["attention_mask"] = torch.ones_like(inputs["input_ids"])
    padding, length = torch.zeros(2, 4, dtype=torch.long), inputs["input_ids"].shape[1]
    left = {name: torch.cat([padding, ids], 1) for name, ids in of_tokens.items()}
    right = {name: torch.cat([ids, padding], 1) for name, ids in of_tokens.items()}
    padded_output = family.group != "encoder-decoder"
    assert_close(logits(model, **inputs | left)[:, 4 if padded_output else 0 :], expected)
    assert_close(logits(model, **inputs | right)[:, : length if padded_output else None], expected)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_kinds(family: Family) -> None:
    """Each kind of prefix changes what comes out, and only an encoder's changes what the encoder says."""
    model = family.build()
    inputs = family.draw_inputs()
    read = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    bank = attach(family, model)
    plain = logits(model, **inputs)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else None
    encoded = None if encoder is None else logits(encoder, **read)
    for kind in {site.kind for site in bank.sites}:
        bank.add(kind, antefix.PrefixConfig(5, init="random", sites=(kind,)))
        assert_far(logits(model, **inputs), plain)
        if encoder is not None and encoded is not None:
            changed = not torch.equal(logits(encoder, **read), encoded)
            assert changed == (kind == "encoder")
    bank.deactivate()
    assert torch.equal(logits(model, **inputs), plain)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_rows(family: Family) -> None:
    """Each row of a batch with prefixes of several lengths, or none, equals that row alone."""
    model = family.build()
    inputs = family.draw_inputs()
    bank = attach(family, model)
    bank.add("short", antefix.PrefixConfig(3, init="random"))
    bank.add("long", antefix.PrefixConfig(8, init="random"))
    for choice in (["long", "short"], [None, "short"]):
        with bank.use(choice):
            mixed = logits(model, **inputs)
        for row, selection in enumerate(choice):
            one = {name: value[row * len(value) // 2 :][: len(value) // 2] for name, value in inputs.items()}
            with bank.use(selection):
                assert_close(mixed[row : row + 1], logits(model, **one))


@over("decoder")
def test_packed(family: Family) -> None:
    """Every document of a packed row, told apart by its positions, equals itself alone."""
    model = family.build()
    documents = [draw_ids(1, 4), draw_ids(1, 7, seed=1)]
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    expected = torch.cat([logits(model, input_ids=ids, use_cache=False) for ids in documents], 1)
    positions = torch.tensor([[*range(4), *range(7)]])
    packed = logits(model, input_ids=torch.cat(documents, 1), position_ids=positions, use_cache=False)
    assert_close(packed, expected)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_detach(family: Family) -> None:
    """Detaching gives back state, configuration and outputs, bit for bit."""
    model = family.build()
    inputs = family.draw_inputs()
    plain = logits(model, **inputs)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    configs = [copy.deepcopy(vars(module.config)) for module in model.modules() if hasattr(module, "config")]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    assert_far(logits(model, **inputs), plain)
    bank.detach()
    assert torch.equal(logits(model, **inputs), plain)
    after_detaching = model.state_dict()
    assert list(after_detaching) == list(state)
    assert all(torch.equal(after_detaching[name], tensor) for name, tensor in state.items())
    assert [vars(m.config) for m in model.modules() if hasattr(m, "config")] == configs
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


@over("vision-language")
def test_towers(family: Family) -> None:
    """By default a prefix stands in the text decoder alone; in the tower when asked."""
    model = family.build()
    inputs = family.draw_inputs()
    bank = attach(family, model)
    for sites, kinds in (
        (None, {"decoder"}),
        (("encoder",), {"encoder"}),
        (("encoder", "decoder"), {"encoder", "decoder"}),
    ):
        plain = logits(model, **inputs)
        bank.add(str(sites), antefix.PrefixConfig(5, init="random", sites=sites))
        assert {site.kind for site in bank.prefix(str(sites)).sites} == kinds
        assert_far(logits(model, **inputs), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    model_class, config_class, settings = REFUSED[name]
    config = getattr(transformers, config_class)(**SMALL, **settings)
    with pytest.raises(antefix.UnsupportedModelError, match=f"^{model_class} computes its attention itself"):
        antefix.attach(getattr(transformers, model_class)(config).eval())
