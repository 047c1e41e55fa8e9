"""`PrefixEncoder` and `PrefixConfig`, against PEFT's encoder where PEFT has one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import antefix
from antefix.encoder import flatten, prefix_of, split
from antefix.initialize import random_prefix, zero_prefix
from antefix.sites import Site

GPT2_SIZED = tuple(Site(f"h.{layer}.attn", "decoder", layer, 12, 64, 64) for layer in range(12))
UNEVEN = (Site("a", "decoder", 0, 2, 6, 4), Site("b", "decoder", 1, 3, 5, 5))


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_shapes_are_those_of_peft(reparameterization: Any) -> None:
    from peft import PrefixEncoder as PeftEncoder
    from peft import PrefixTuningConfig

    theirs = PeftEncoder(
        PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=20, token_dim=768, num_transformer_submodules=1,
            num_attention_heads=12, num_layers=12, encoder_hidden_size=64,
            prefix_projection=reparameterization == "mlp",
        )
    )  # fmt: skip
    config = antefix.PrefixConfig(20, reparameterization=reparameterization, encoder_hidden_size=64)
    ours = antefix.PrefixEncoder(GPT2_SIZED, config)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.arange(20).expand(2, -1)
    assert torch.equal(ours(tokens), theirs(tokens))
    assert ours().shape == (20, 18432)
    # PEFT's own way from the flat output to the key and the value of a layer.
    layers = theirs(tokens).view(2, 20, 24, 12, 64).permute(2, 0, 3, 1, 4).split(2)
    for site in GPT2_SIZED:
        key, value = ours.keys_and_values()[site.path]
        assert torch.equal(key, layers[site.layer][0][0])
        assert torch.equal(value, layers[site.layer][1][0])


def test_flatten_and_split_undo_each_other_for_uneven_sites() -> None:
    prefix = random_prefix(UNEVEN, 7)
    flat = flatten(prefix, UNEVEN)
    assert flat.shape == (7, 2 * (6 + 4) + 3 * (5 + 5))
    for path, (key, value) in split(flat, UNEVEN).items():
        assert torch.equal(key, prefix.keys[path])
        assert torch.equal(value, prefix.values[path])


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_begins_exactly_at_the_initial_prefix(reparameterization: Any) -> None:
    initial = random_prefix(UNEVEN, 5)
    config = antefix.PrefixConfig(5, reparameterization=reparameterization)
    encoder = antefix.PrefixEncoder(UNEVEN, config, initial)
    for path, (key, value) in encoder.keys_and_values().items():
        assert torch.equal(key, initial.keys[path])
        assert torch.equal(value, initial.values[path])


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_frozen_tokens_get_no_gradient_and_stay(reparameterization: Any) -> None:
    initial = random_prefix(UNEVEN, 5)
    config = antefix.PrefixConfig(5, num_frozen_tokens=2, reparameterization=reparameterization, encoder_hidden_size=8)
    encoder = antefix.PrefixEncoder(UNEVEN, config, initial)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        encoder().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    start = flatten(initial, UNEVEN)
    assert torch.equal(encoder()[:2], start[:2])
    assert not torch.isclose(encoder()[2:], start[2:]).all(dim=1).any()


def test_dropout_drops_in_training_only_and_never_in_what_is_saved() -> None:
    encoder = antefix.PrefixEncoder(UNEVEN, antefix.PrefixConfig(50, dropout=0.5, init="random"))
    dropped = [key for key, _ in encoder.train().keys_and_values().values()]
    assert 0.4 < torch.cat([key.flatten() == 0 for key in dropped]).float().mean() < 0.6
    kept = [key for key, _ in encoder.keys_and_values(dropout=False).values()]
    assert not any((key == 0).any() for key in kept)
    assert not any((key == 0).any() for key, _ in encoder.eval().keys_and_values().values())


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_dropout_leaves_frozen_tokens(reparameterization: Any) -> None:
    initial = random_prefix(UNEVEN, 50)
    settings: dict[str, Any] = {"reparameterization": reparameterization, "encoder_hidden_size": 8}
    config = antefix.PrefixConfig(50, num_frozen_tokens=2, dropout=0.5, **settings)
    encoder = antefix.PrefixEncoder(UNEVEN, config, initial).train()
    for path, pair in encoder.keys_and_values().items():
        for made, start in zip(pair, (initial.keys[path], initial.values[path]), strict=True):
            assert torch.equal(made[:, :2], start[:, :2])
            assert 0.3 < (made[:, 2:] == 0).float().mean() < 0.7
    assert torch.equal(encoder(), flatten(initial, UNEVEN)), "none is dropped unasked"


def test_zero_is_zero() -> None:
    encoder = antefix.PrefixEncoder(UNEVEN, antefix.PrefixConfig(3, init="zero"), zero_prefix(UNEVEN, 3))
    assert encoder().count_nonzero() == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 2.5}, "num_virtual_tokens"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens"),
        ({"encoder_hidden_size": 0}, "encoder_hidden_size"),
        ({"reparameterization": "lstm"}, "reparameterization"),
        ({"init": "ones"}, "init"),
        ({"sites": ("middle",)}, "sites"),
        ({"sites": ()}, "sites"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "zero", "init_text": "hello"}, "init_text"),
        ({"num_virtual_tokens": 4, "num_frozen_tokens": 4}, "num_frozen_tokens"),
        ({"num_frozen_tokens": 1, "init": "random", "reparameterization": "mlp"}, "num_frozen_tokens"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(antefix.ConfigError, match=named):
        antefix.PrefixConfig(**settings)


def test_layers_select_sites() -> None:
    config = antefix.PrefixConfig(4, layers=(0, 3))
    assert [site.layer for site in config.select(GPT2_SIZED)] == [0, 3]
    with pytest.raises(antefix.ConfigError, match="layers"):
        antefix.PrefixConfig(4, layers=(99,)).select(GPT2_SIZED)


def test_keys_and_values_come_in_the_dtype_of_the_base() -> None:
    """They are cast at once, follow the base to another dtype, and are saved as they are trained."""
    encoder = antefix.PrefixEncoder(UNEVEN, antefix.PrefixConfig(3, init="random"), None, torch.bfloat16)
    assert {part.dtype for pair in encoder.keys_and_values().values() for part in pair} == {torch.bfloat16}
    assert {part.dtype for pair in encoder.keys_and_values(dropout=False).values() for part in pair} == {torch.float32}
    exact = encoder.double().keys_and_values()
    assert all(torch.equal(key, exact[path][0]) for path, (key, _) in encoder.keys_and_values(dropout=False).items())


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
def test_parameters_are_fp32_whatever_the_default_is(reparameterization: Any) -> None:
    config = antefix.PrefixConfig(3, init="random", reparameterization=reparameterization, encoder_hidden_size=8)
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn, encoder = random_prefix(UNEVEN, 3), antefix.PrefixEncoder(UNEVEN, config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {part.dtype for part in (*drawn.keys.values(), *drawn.values.values())} == {torch.float32}
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_what_is_saved_under_autocast_is_what_was_trained() -> None:
    config = antefix.PrefixConfig(3, init="random", reparameterization="mlp", encoder_hidden_size=8)
    encoder = antefix.PrefixEncoder(UNEVEN, config)
    expected = prefix_of([encoder], UNEVEN, {}, {})
    with torch.autocast("cpu", torch.bfloat16):
        found = prefix_of([encoder], UNEVEN, {}, {})
    for path, key in expected.keys.items():
        assert torch.equal(found.keys[path], key)
        assert torch.equal(found.values[path], expected.values[path])
