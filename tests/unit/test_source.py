"""A module of one's own as the source of a prefix: here a network that makes it from a description of the task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import antefix
from antefix.encoder import split
from antefix.sites import Site
from tests.conftest import build_model, draw_ids

TOKENS = 3


class Hypernetwork(nn.Module):
    """Makes a prefix from eight numbers that describe a task."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.description = torch.randn(8)
        self.layer = nn.Linear(8, TOKENS * sum(site.width for site in self.sites))
        self.runs = 0

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Make keys and values, and count how often."""
        self.runs += 1
        return split(self.layer(self.description).view(TOKENS, -1), self.sites)


@pytest.fixture
def bank() -> antefix.PrefixBank:
    return antefix.attach(build_model("llama"))


def loss(bank: antefix.PrefixBank) -> torch.Tensor:
    ids = draw_ids(2, 6)
    return bank.model(input_ids=ids, labels=ids).loss


def test_it_trains_and_stays_the_callers(bank: antefix.PrefixBank) -> None:
    source = Hypernetwork(bank.sites)
    state, grads = list(bank.model.state_dict()), [p.requires_grad for p in bank.model.parameters()]
    bare = loss(bank).item()
    bank.add("made", source, metadata={"of": "a description"})
    assert loss(bank).item() == bare, "adding one selects nothing"
    with bank.use("made"):
        loss(bank).backward()
    assert source.layer.weight.grad is not None
    assert source.layer.weight.grad.abs().max() > 0
    assert list(bank.model.state_dict()) == state
    assert [p.requires_grad for p in bank.model.parameters()] == grads
    bank.remove("made")
    assert bank.names == []


def test_it_is_read_and_saved_as_it_is_now(bank: antefix.PrefixBank, tmp_path: Path) -> None:
    source = Hypernetwork(bank.sites[1:])
    bank.add("made", source, metadata={"of": "a description"})
    before = bank.prefix("made")
    with torch.no_grad():
        source.description.mul_(2.0)
    bank.save("made", tmp_path / "p.safetensors")
    bank.load(tmp_path / "p.safetensors", "saved")
    assert bank.prefix("saved").sites == bank.sites[1:]
    assert bank.prefix("saved").metadata["of"] == "a description"
    path = bank.sites[1].path
    assert not torch.equal(before.keys[path], bank.prefix("made").keys[path])
    losses = []
    for name in ("made", "saved"):
        with bank.use(name), torch.no_grad():
            losses.append(loss(bank).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_it_runs_once_an_answer(bank: antefix.PrefixBank) -> None:
    source = Hypernetwork(bank.sites).eval()
    bank.add("made", source)
    before = source.runs
    with bank.use("made"):
        bank.model.generate(input_ids=draw_ids(2, 4), max_new_tokens=6, min_new_tokens=6)
    assert source.runs == before + 1


def test_one_of_another_shape_is_refused(bank: antefix.PrefixBank) -> None:
    with pytest.raises(antefix.PrefixMismatchError, match="num_key_value_heads 2 instead of 4"):
        bank.add("made", Hypernetwork([dataclasses.replace(bank.sites[0], num_key_value_heads=4)]))
    wrong = Hypernetwork(bank.sites)
    wrong.keys_and_values = lambda dropout=True: {}  # type: ignore[method-assign,assignment]
    with pytest.raises(antefix.PrefixFormatError, match="exactly one key and one value"):
        bank.add("made", wrong)
    with pytest.raises(antefix.ConfigError, match="PrefixSource"):
        bank.add("made", nn.Linear(2, 2))  # type: ignore[arg-type]
    assert bank.names == []
