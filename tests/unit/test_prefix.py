"""`Prefix`: immutable, validated, and only for its own base model."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import Prefix, geometry_fingerprint
from antefix.sites import Site

SITES = (Site("a", "decoder", 0, 2, 6, 4), Site("b", "decoder", 1, 2, 6, 4))


def test_a_prefix_cannot_be_changed() -> None:
    prefix = random_prefix(SITES, 3)
    with pytest.raises(FrozenInstanceError):
        prefix.keys = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        prefix.keys["a"] = torch.zeros(1)  # type: ignore[index]


def test_a_prefix_is_shown_without_its_numbers() -> None:
    prefix = replace(random_prefix(SITES, 3), metadata={"base_class": "LlamaForCausalLM"})
    assert repr(prefix) == "Prefix(num_virtual_tokens=3, sites=2, base_class='LlamaForCausalLM')"


def test_a_prefix_can_be_copied_and_pickled() -> None:
    prefix = random_prefix(SITES, 3)
    for other in (copy.deepcopy(prefix), pickle.loads(pickle.dumps(prefix))):  # noqa: S301
        assert other.sites == prefix.sites
        assert torch.equal(other.keys["a"], prefix.keys["a"])


@pytest.mark.parametrize("change", ["missing", "shape", "length", "dtype", "fp8", "empty"])
def test_tensors_must_fit_their_sites(change: str) -> None:
    prefix = random_prefix(SITES, 3)
    keys = dict(prefix.keys)
    if change == "missing":
        del keys["b"]
    elif change == "shape":
        keys["b"] = torch.zeros(2, 3, 5)
    elif change == "length":
        keys["b"] = torch.zeros(2, 4, 6)
    elif change == "dtype":
        keys["b"] = keys["b"].to(torch.complex64)
    elif change == "fp8":
        keys["b"] = keys["b"].to(torch.float8_e4m3fn)
    else:
        keys = {path: torch.zeros(2, 0, 6) for path in keys}
    with pytest.raises(antefix.PrefixFormatError):
        Prefix(SITES, keys, prefix.values)


def test_a_slice_is_the_prefix_of_some_tokens() -> None:
    prefix = random_prefix(SITES, 5)
    part = prefix[1:4]
    assert part.num_virtual_tokens == 3
    assert torch.equal(part.keys["b"], prefix.keys["b"][:, 1:4])
    assert torch.equal(part.values["a"], prefix.values["a"][:, 1:4])
    assert prefix[-2:].num_virtual_tokens == 2
    for nothing in (slice(3, 3), slice(9, None), slice(None, None, -1), 2):
        with pytest.raises(antefix.ConfigError, match="no part of 5 virtual tokens"):
            prefix[nothing]


def test_a_prefix_of_another_base_says_what_differs() -> None:
    prefix = random_prefix(SITES, 3)
    prefix.check_fits(SITES, SITES)
    wider = (replace(SITES[0], num_key_value_heads=8, key_dim=16), SITES[1])
    with pytest.raises(antefix.PrefixMismatchError, match=r"'a' has num_key_value_heads 8 instead of 2, key_dim 16"):
        prefix.check_fits(wider, wider)
    with pytest.raises(antefix.PrefixMismatchError, match="no decoder attention at 'b'"):
        prefix.check_fits(SITES[:1], SITES[:1])


def test_a_deeper_base_with_the_same_first_layers_is_another_base() -> None:
    made = random_prefix(SITES, 3)
    prefix = Prefix(SITES, made.keys, made.values, {"fingerprint": geometry_fingerprint(SITES)})
    deeper = (*SITES, Site("c", "decoder", 2, 2, 6, 4))
    with pytest.raises(antefix.PrefixMismatchError, match="3 sites are not all those that were found in the other"):
        prefix.check_fits(deeper, deeper)
    prefix.check_fits(deeper, text_sites=SITES)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modules": {"score.weight": torch.ones(2)}}, "'score.weight' names no tensor of a module"),
        ({"modules": {"score:": torch.ones(2)}}, "'score:' names no tensor of a module"),
        ({"modules": {":weight": torch.ones(2)}}, "':weight' names no tensor of a module"),
        ({"path": "a:b"}, "'a:b' of kind 'decoder' is no site; a path has no colon"),
        ({"kind": "tower"}, "'layer' of kind 'tower' is no site"),
    ],
)
def test_what_a_file_could_not_be_read_with_is_no_prefix(change: dict[str, Any], sentence: str) -> None:
    modules = change.get("modules", {})
    site = Site(change.get("path", "layer"), change.get("kind", "decoder"), 0, 1, 2, 2)
    numbers = {site.path: torch.zeros(1, 3, 2)}
    with pytest.raises(antefix.PrefixFormatError, match=re.escape(sentence)):
        Prefix((site,), numbers, numbers, modules=modules)
