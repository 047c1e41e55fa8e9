"""What a prefix is said to hold, how far it moved, and how similar it is to another, against numbers made by hand."""

from __future__ import annotations

import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.inspect.ablation import without_each_layer
from antefix.inspect.contents import contents
from antefix.inspect.drift import drift
from antefix.inspect.similarity import similarities, similarity
from antefix.prefix import Prefix
from antefix.sites import Site

SITES = (Site("a", "decoder", 0, 2, 3, 4), Site("b", "decoder", 1, 1, 3, 4))


def _prefix(num_virtual_tokens: int = 5, seed: int = 0) -> Prefix:
    torch.manual_seed(seed)
    return random_prefix(SITES, num_virtual_tokens)


def test_norms_are_those_of_each_head() -> None:
    keys = {"a": torch.tensor([[[3.0, 4.0, 0.0]], [[0.0, 0.0, 2.0]]]), "b": torch.ones(1, 1, 3)}
    values = {"a": torch.zeros(2, 1, 4), "b": torch.ones(1, 1, 4)}
    found = contents(Prefix(SITES, keys, values, {"base_model": "tiny"}))
    assert found.key_norms["a"] == [5.0, 2.0]
    assert found.value_norms == {"a": [0.0, 0.0], "b": [2.0]}
    assert found.num_bytes == 4 * (2 * (3 + 4) + 1 * (3 + 4))
    assert found.as_dict()["metadata"] == {"base_model": "tiny"}


def test_each_layer_is_left_out_once() -> None:
    prefix = _prefix()
    parts = without_each_layer(prefix)
    assert {name: [site.path for site in part.sites] for name, part in parts.items()} == {
        "decoder 0": ["b"],
        "decoder 1": ["a"],
    }
    assert torch.equal(parts["decoder 0"].keys["b"], prefix.keys["b"])
    assert without_each_layer(parts["decoder 0"]) == {}


def test_drift_is_the_relative_distance_of_each_token() -> None:
    start = _prefix()
    keys = {path: key.clone() for path, key in start.keys.items()}
    for key in keys.values():
        key[:, 2] *= 1.5
    found = drift(start, Prefix(SITES, keys, start.values), list("abcde"))
    assert found.keys == pytest.approx([0, 0, 0.5, 0, 0], abs=1e-6)
    assert found.values == [0.0] * 5


def test_similarity_knows_no_order_and_no_length() -> None:
    prefix = _prefix()
    turned = Prefix(
        SITES, *({path: t[:, [3, 1, 4, 0, 2]] for path, t in part.items()} for part in (prefix.keys, prefix.values))
    )
    assert similarity(prefix, turned) == pytest.approx(1.0)
    twice = antefix.concat([prefix, prefix])
    assert similarity(prefix, twice) == pytest.approx(1.0)
    matrix = similarities([prefix, _prefix(8, seed=1)])
    assert matrix[0][1] == matrix[1][0] < 0.9


def test_values_that_share_no_channel_are_not_similar() -> None:
    def at(channels: slice) -> Prefix:
        values = {site.path: torch.zeros(site.num_key_value_heads, 2, 4) for site in SITES}
        for value in values.values():
            value[:, :, channels] = 1.0
        return Prefix(SITES, {site.path: torch.ones(site.num_key_value_heads, 2, 3) for site in SITES}, values)

    assert similarity(at(slice(0, 2)), at(slice(2, 4))) == 0.0


def test_prefixes_of_other_sites_are_not_compared() -> None:
    other = random_prefix(SITES[:1], 5)
    with pytest.raises(antefix.PrefixMismatchError, match="different sites"):
        similarity(_prefix(), other)


def test_values_of_nothing_but_zeros_are_alike_whatever_their_lengths() -> None:
    site = Site("layer", "decoder", 0, 1, 2, 2)
    zeros = {n: Prefix((site,), {"layer": torch.ones(1, n, 2)}, {"layer": torch.zeros(1, n, 2)}) for n in (3, 4)}
    ones = Prefix((site,), {"layer": torch.ones(1, 3, 2)}, {"layer": torch.ones(1, 3, 2)})
    assert similarity(zeros[3], zeros[4]) == similarity(zeros[3], zeros[3]) == 1.0
    assert similarity(zeros[3], ones) == 0.0
