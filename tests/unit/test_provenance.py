"""What a prefix tells of how it was made."""

from __future__ import annotations

import pytest
import torch

import antefix
from antefix.sites import Site
from antefix.training.provenance import Provenance


def prefix_with(metadata: dict[str, object]) -> antefix.Prefix:
    site = Site("layer", "decoder", 0, 1, 1, 1)
    number = {"layer": torch.zeros(1, 1, 1)}
    return antefix.Prefix((site,), number, number, metadata)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, (None, None)),
        ({"training": {"prompt": "{a}\n", "messages": None}}, ("{a}\n", None)),
        ({"training": {"prompt": None, "messages": "turns"}}, (None, "turns")),
        ({"distillation": {"prompt": "{a}\n", "chats": False}}, ("{a}\n", None)),
        ({"distillation": {"prompt": "{a}\n", "chats": True}}, (None, "messages")),
        ({"distillation": {"messages": "turns", "chats": True}}, (None, "turns")),
        ({"distillation": "damaged"}, (None, None)),
    ],
)
def test_a_prefix_tells_what_it_learned_behind(metadata: dict[str, object], told: tuple[str, str]) -> None:
    wording = Provenance.of(prefix_with(metadata)).wording
    assert (wording.get("prompt"), wording.get("messages")) == told


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({}, None),
        ({"base_model": "named"}, "named"),
        ({"training": {"model": "trained"}, "base_model": "named"}, "trained"),
        ({"distillation": {"model": "distilled"}, "base_model": "named"}, "distilled"),
        ({"training": {"model": 5}, "base_model": ""}, None),
        ({"training": "damaged", "base_model": "named"}, "named"),
    ],
)
def test_a_prefix_tells_its_base_model(metadata: dict[str, object], told: str | None) -> None:
    assert Provenance.of(prefix_with(metadata)).base_model == told
