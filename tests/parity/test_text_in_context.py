"""A prefix made from text equals having that text in context."""

from __future__ import annotations

import pytest
import torch

import antefix
from antefix.initialize import token_prefix
from tests.conftest import build_model, draw_ids

# fp32 sums in another order: errors of a few 1e-6 are rounding, a wrong position or mask is off by more than 1e-2.
TOLERANCE = 1e-4


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_logits_equal_those_after_the_text(name: str, implementation: str) -> None:
    model = build_model(name, attn_implementation=implementation)
    text, ids = draw_ids(1, 9, seed=1), draw_ids(3, 7)
    expected = model(torch.cat([text.expand(3, -1), ids], dim=1)).logits[:, 9:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    with bank.use("text"):
        actual = model(ids).logits
    assert (actual - expected).abs().max() < TOLERANCE
    assert (model(ids).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model = build_model(name)
    text, ids = draw_ids(1, 9, seed=1), draw_ids(1, 7)
    expected = model(torch.cat([text, ids], dim=1)).logits[:, 9:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    padding, ones = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 7, dtype=torch.long)
    with bank.use("text"):
        left = model(torch.cat([padding, ids], 1), attention_mask=torch.cat([padding, ones], 1)).logits[:, 4:]
        right = model(torch.cat([ids, padding], 1), attention_mask=torch.cat([ones, padding], 1)).logits[:, :7]
    assert (left - expected).abs().max() < TOLERANCE
    assert (right - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_equals_generation_after_the_text(name: str) -> None:
    model = build_model(name)
    text, ids = draw_ids(1, 9, seed=1), draw_ids(2, 5)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(torch.cat([text.expand(2, -1), ids], 1), **settings)[:, 14:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    with bank.use("text"):
        assert torch.equal(model.generate(ids, **settings)[:, 5:], expected)
    assert not torch.equal(model.generate(ids, **settings)[:, 5:], expected)


def test_tokens_of_the_text_come_first_and_repeat(tmp_path: object) -> None:
    from transformers import AutoTokenizer

    from antefix.embedded import model_path
    from antefix.initialize import text_prefix

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    bank = antefix.attach(model)
    ids = [1, *(tokenizer("The sea. ", add_special_tokens=False)["input_ids"] * 9)][:11]
    expected = token_prefix(model, torch.tensor([ids]), bank.sites)
    actual = text_prefix(model, tokenizer, "The sea. ", 11, bank.sites)
    for path in expected.keys:
        assert torch.equal(actual.keys[path], expected.keys[path])


def test_a_packed_row_gives_the_prefix_to_each_document() -> None:
    model = build_model("llama")
    text, first, second = draw_ids(1, 9, seed=1), draw_ids(1, 4, seed=2), draw_ids(1, 6, seed=3)
    expected = [model(torch.cat([text, ids], 1)).logits[:, 9:] for ids in (first, second)]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, text, bank.sites))
    positions = torch.tensor([[*range(4), *range(6)]])
    with bank.use("text"):
        packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    assert (packed - torch.cat(expected, 1)).abs().max() < TOLERANCE
