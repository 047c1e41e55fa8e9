"""Prefixes from prefixes: joined and averaged; the model that attends over both is in the parity tests."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import Prefix
from antefix.sites import Site

SITES = (Site("a", "decoder", 0, 2, 6, 4), Site("b", "decoder", 1, 2, 6, 4))


def with_head(prefix: Prefix, value: float) -> Prefix:
    return replace(prefix, modules={"classifier:weight": torch.full((2, 3), value)})


def test_concat_joins_tokens() -> None:
    first, second = random_prefix(SITES, 3), random_prefix(SITES, 5)
    both = antefix.concat([first, second])
    assert both.num_virtual_tokens == 8
    assert torch.equal(both.keys["b"][:, :3], first.keys["b"])
    assert torch.equal(both.values["b"][:, 3:], second.values["b"])
    again = antefix.concat([both[:3], both[3:]])
    assert all(torch.equal(again.keys[path], key) for path, key in both.keys.items())


def test_the_result_tells_what_it_was_made_of() -> None:
    first, second = (replace(random_prefix(SITES, 3), metadata={"training": {"data": name}}) for name in "ab")
    assert antefix.concat([first, second[:2]]).metadata == {
        **first.metadata, "composition": {"kind": "concat", "num_virtual_tokens": [3, 2]},
    }  # fmt: skip
    mean = antefix.average([first, second], weights=[3, 1])
    assert mean.metadata["composition"] == {"kind": "average", "weights": [0.75, 0.25]}
    assert antefix.concat([first]).metadata == antefix.average([second])[:1].metadata | first.metadata == first.metadata


def test_the_result_tells_what_its_parts_were_made_of() -> None:
    parts = [replace(random_prefix(SITES, 3), metadata={"training": {"data": name}}) for name in "abc"]
    mean = antefix.average(parts[:2])
    told = {"kind": "average", "weights": [0.5, 0.5]}
    assert antefix.concat([parts[2], mean[1:]]).metadata == {
        **parts[2].metadata,
        "composition": {"kind": "concat", "num_virtual_tokens": [3, 2], "parts": [None, told]},
    }
    again = antefix.average([mean, antefix.concat([mean])])
    assert again.metadata["composition"] == {**told, "parts": [told, told]}


def test_average_of_each_token() -> None:
    first, second = (with_head(random_prefix(SITES, 3), value) for value in (1.0, 5.0))
    mean = antefix.average([first, second], weights=[3, 1])
    torch.testing.assert_close(mean.keys["b"], 0.75 * first.keys["b"] + 0.25 * second.keys["b"])
    torch.testing.assert_close(mean.values["a"], 0.75 * first.values["a"] + 0.25 * second.values["a"])
    assert torch.equal(mean.modules["classifier:weight"], torch.full((2, 3), 2.0))
    same = antefix.average([first, first, first])
    assert all(torch.equal(same.keys[path], key) for path, key in first.keys.items())
    halves = antefix.average([replace(p, keys={k: t.bfloat16() for k, t in p.keys.items()}) for p in (first, second)])
    assert halves.keys["a"].dtype == torch.bfloat16
    assert antefix.average([halves, first]).keys["a"].dtype == torch.float32


def test_what_cannot_be_put_together() -> None:
    first, longer, fewer = random_prefix(SITES, 3), random_prefix(SITES, 4), random_prefix(SITES[:1], 3)
    for combine in (antefix.concat, antefix.average):
        with pytest.raises(antefix.ConfigError, match="no prefixes"):
            combine([])
        for wrong in (first, ["a name"]):
            with pytest.raises(antefix.ConfigError, match="a list of prefixes"):
                combine(wrong)
        with pytest.raises(antefix.PrefixMismatchError, match="the same sites"):
            combine([first, fewer])
        others = [replace(first, metadata={"fingerprint": name}) for name in ("one", "other")]
        with pytest.raises(antefix.PrefixMismatchError, match="the same sites"):
            combine(others)
    with pytest.raises(antefix.PrefixMismatchError, match="3 and 4 virtual tokens"):
        antefix.average([first, longer])
    with pytest.raises(antefix.PrefixMismatchError, match="modules"):
        antefix.average([first, with_head(first, 1.0)])
    with pytest.raises(antefix.PrefixMismatchError, match=r"these tell \['a', 'b'\] and \['b', 'a'\]"):
        antefix.average([replace(with_head(first, 1.0), metadata={"labels": list(labels)}) for labels in ("ab", "ba")])
    for weights in ([1.0], [1.0, -1.0], [float("nan"), 1.0]):
        with pytest.raises(antefix.ConfigError, match="must be 2 numbers whose sum is above 0"):
            antefix.average([first, first], weights)


@pytest.mark.parametrize("number", [np.float32, torch.tensor, Fraction])
def test_weights_of_any_numbers_can_be_saved(number: Any, tmp_path: Path) -> None:
    made = antefix.average([random_prefix(SITES, 3), random_prefix(SITES, 3)], [number(1), number(3)])
    antefix.save_prefix(made, tmp_path / "mean.safetensors")
    assert antefix.load_prefix(tmp_path / "mean.safetensors").metadata["composition"]["weights"] == [0.25, 0.75]
