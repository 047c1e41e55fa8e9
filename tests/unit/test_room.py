"""Prompts and answers are held against the positions of the stack that reads them, less what a prefix takes there."""

from __future__ import annotations

import pytest

import antefix
from antefix.training.room import Room
from tests.conftest import build_model


@pytest.mark.parametrize(
    ("name", "sites", "fits", "too_much"),
    [
        ("llama", None, (60, 28), (60, 29)),  # 128 positions, 40 for the prefix
        ("gpt2", None, (20, 4), (20, 5)),  # 64 positions
        ("bart", ("cross",), (64, 64), (65, 1)),
        ("bart", ("encoder",), (24, 64), (25, 1)),
        ("bart", ("decoder",), (64, 24), (1, 25)),
        ("t5", None, (10_000, 10_000), None),
    ],
)
def test_room(
    name: str, sites: tuple[str, ...] | None, fits: tuple[int, int], too_much: tuple[int, int] | None
) -> None:
    bank = antefix.attach(build_model(name))
    bank.add("p", antefix.PrefixConfig(40, init="random", sites=sites))
    room = Room(bank, "p")
    room.check(*fits, "it")
    if too_much is not None:
        with pytest.raises(antefix.ContextLengthError, match=r"the prefix \(40 tokens\)|the prefix \(0 tokens\)"):
            room.check(*too_much, "it")
        named = "encoder" if name == "bart" and too_much[0] > fits[0] else "decoder"
        with pytest.raises(antefix.ContextLengthError, match=f"positions of the {named}; shorten it"):
            room.check(*too_much, "it")
    Room(bank).check(*(min(number, 60) for number in fits), "it")


@pytest.mark.parametrize(
    ("name", "sites", "most"),
    [("llama", None, 88), ("bart", ("cross",), 64), ("bart", ("encoder",), 24), ("t5", None, None)],
)
def test_what_fits_into_every_stack(name: str, sites: tuple[str, ...] | None, most: int | None) -> None:
    bank = antefix.attach(build_model(name))
    bank.add("p", antefix.PrefixConfig(40, init="random", sites=sites))
    assert Room(bank, "p").max_tokens == most
