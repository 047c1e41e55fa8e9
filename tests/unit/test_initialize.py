"""What a prefix starts from."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

import antefix
from antefix.embedded import model_path
from antefix.initialize import text_prefix, token_prefix
from tests.conftest import build_model


def test_tokens_of_the_text_come_first_and_repeat() -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    bank = antefix.attach(model)
    ids = [1, *(tokenizer("The sea. ", add_special_tokens=False)["input_ids"] * 9)][:11]
    expected = token_prefix(model, torch.tensor([ids]), bank.sites)
    actual = text_prefix(model, tokenizer, "The sea. ", 11, bank.sites)
    for path in expected.keys:
        assert torch.equal(actual.keys[path], expected.keys[path])
