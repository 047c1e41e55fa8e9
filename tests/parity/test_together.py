"""Prefixes of a mixed batch that lie side by side give what each gives alone, and no longer than their cache lasts."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import antefix
from antefix.attention import shared
from antefix.attention.kernels import attend_part
from antefix.attention.shared import shared_attention
from tests.conftest import build_model, draw_ids
from tests.parity.compare import assert_close
from tests.parity.written_out import SCALE, by_hand, draw

Choice = Sequence[str | None]
LAYERS = 3


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many rows each call of a kernel has."""
    found: list[int] = []

    def spy(query: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        found.append(len(query))
        return attend_part(query, *args)

    monkeypatch.setattr(shared, "attend_part", spy)
    return found


@pytest.fixture
def bank() -> antefix.PrefixBank:
    """Return a bank with frozen prefixes: four of 5 tokens, one of 7."""
    bank = antefix.attach(build_model("llama"))
    for name, length in {"a": 5, "b": 5, "c": 5, "d": 5, "longer": 7}.items():
        bank.add(name, antefix.PrefixConfig(length, init="random"))
        prefix = bank.prefix(name)
        bank.remove(name)
        bank.add(name, prefix)
    return bank


def decode(bank: antefix.PrefixBank, choices: Sequence[Choice], cache: Any = None, rows: slice = slice(None)) -> Tensor:
    """Return the logits of 4 tokens at once and of one after another, each forward with a choice of its own."""
    cache = DynamicCache(config=bank.model.config) if cache is None else cache
    ids, logits = draw_ids(4, 4 + len(choices) - 1)[rows][: len(choices[0])], []
    for step, choice in enumerate(choices):
        new = ids[:, :4] if step == 0 else ids[:, step + 3 : step + 4]
        with torch.no_grad(), bank.use(list(choice)):
            logits.append(bank.model(input_ids=new, past_key_values=cache).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [0, 0, 1, 1, 2, 2], [2, 0, 1, 1, 0, 2]], ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 600])
@pytest.mark.parametrize("queries", [1, 5])
def test_equals_softmax_written_out(queries: int, tokens: int, rows: list[int], calls: list[int]) -> None:
    """Before long prefixes, the heads of a group come together, too."""
    query, key, value = draw(len(rows), 4, queries, 8), draw(len(rows), 2, 5, 8), draw(len(rows), 2, 5, 6)
    prefixes = [(draw(2, tokens, 8), draw(2, tokens, 6)) for _ in range(3)]
    keys, values = zip(*prefixes, strict=True)
    with torch.no_grad():
        laid = torch.stack(keys), torch.stack(values)
        actual = shared_attention(query, key, value, prefixes, rows, None, queries > 1, SCALE, lambda: laid)
    assert calls == [len(rows), 3]
    assert_close(actual, by_hand(query, key, value, prefixes, rows, None, queries > 1), 1e-13)


@pytest.mark.parametrize("rows", [[0, 1, -1], [0, 0, 1], [0, 1, 2]], ids=str)
def test_what_is_not_alike_is_attended_to_apart(rows: list[int]) -> None:
    query, key, value = draw(3, 4, 1, 8), draw(3, 2, 5, 8), draw(3, 2, 5, 8)
    prefixes = [(draw(2, tokens, 8), draw(2, tokens, 8)) for tokens in (4, 4, 3)][: max(rows) + 1]

    def lay() -> tuple[Tensor, Tensor]:
        raise AssertionError

    with torch.no_grad():
        actual = shared_attention(query, key, value, prefixes, rows, None, False, SCALE, lay)
    assert_close(actual, by_hand(query, key, value, prefixes, rows, None, False), 1e-13)


@pytest.mark.parametrize("choice", ["abcd", "dbca", "abab", ["a", "b", None, "c"], ["a", "longer"]], ids=str)
def test_every_row_is_as_it_is_alone(choice: Choice, bank: antefix.PrefixBank, calls: list[int]) -> None:
    actual = decode(bank, [choice] * 4)
    per_step = 2 if all(name in ("a", "b", "c", "d") for name in choice) else 1 + len(set(choice) - {None})
    assert len(calls) == LAYERS * (1 + len(set(choice) - {None}) + 3 * per_step)
    ids = draw_ids(4, 7)
    for row, name in enumerate(choice):
        with torch.no_grad(), bank.use(name):
            assert_close(actual[row : row + 1], bank.model(input_ids=ids[row : row + 1]).logits)


def test_another_choice_with_the_same_cache_is_laid_anew(bank: antefix.PrefixBank) -> None:
    """Prefixes that were laid together for a cache must not stand for those that came after them."""
    choices = ["ab", "ab", "ba", "ba", "cd", "cd"]
    actual = decode(bank, choices)
    expected = torch.cat([decode(bank, [step[row] for step in choices], rows=slice(row, None)) for row in range(2)])
    assert_close(actual, expected)


def test_a_model_that_goes_to_another_dtype_lays_them_there(bank: antefix.PrefixBank) -> None:
    cache, ids = DynamicCache(config=bank.model.config), draw_ids(2, 8)
    with torch.no_grad(), bank.use(["a", "b"]):
        for new in (ids[:, :4], ids[:, 4:5], ids[:, 5:6]):
            bank.model(input_ids=new, past_key_values=cache)
        bank.model.double()
        actual = bank.model(input_ids=ids[:, 6:7], past_key_values=cache).logits
        expected = bank.model(input_ids=ids[:, :7], use_cache=False).logits[:, 6:]
    assert actual.dtype == torch.float64
    assert_close(actual, expected)


def test_nothing_outlives_the_cache(bank: antefix.PrefixBank) -> None:
    cache = DynamicCache(config=bank.model.config)
    decode(bank, ["abcd"] * 3, cache)
    (stack,) = bank._stacks._stacks.values()
    (laid,) = stack.together._of_cache.values()
    assert [key.shape for key, _ in laid._by_place.values()] == [(4, 2, 5, 8)] * LAYERS
    del cache, laid
    gc.collect()
    assert not stack.together._of_cache


def test_what_trains_is_made_anew_and_not_laid(bank: antefix.PrefixBank, calls: list[int]) -> None:
    """Prefixes with parameters may be others in the next forward."""
    for name in ("e", "f"):
        bank.add(name, antefix.PrefixConfig(5, init="random"))
    decode(bank, ["ef"] * 3)
    assert len(calls) == LAYERS * 3 * 3
