"""What a prefix starts from."""

from __future__ import annotations

import threading

import torch
from transformers import AutoTokenizer

import antefix
from antefix.embedded import model_path
from antefix.initialize import random_prefix, text_prefix, token_prefix
from tests.conftest import build_model, draw_ids, run


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


def test_other_threads_go_on_while_a_text_is_captured() -> None:
    model, ids = build_model("llama"), draw_ids(1, 5)
    bank = antefix.attach(model)
    bank.add("a", random_prefix(bank.sites, 3))
    bare = run(model)
    with bank.use("a"):
        answer = run(model)
    expected, found, captured = token_prefix(model, ids, bank.sites), [], []

    def serve() -> None:
        with bank.use("a"):
            found.append(run(model))
        found.append(run(model))

    def capture() -> None:
        captured.append(token_prefix(model, ids, bank.sites))

    other = threading.Thread(target=capture)

    def interrupt(*_: object) -> None:
        hook.remove()
        other.start()  # which waits for its turn
        served = threading.Thread(target=serve)
        served.start()
        served.join()

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    capture()
    other.join()
    assert torch.equal(found[0], answer)
    assert torch.equal(found[1], bare)
    assert [prefix.content_hash() for prefix in captured] == [expected.content_hash()] * 2
    with bank.use("a"):
        assert torch.equal(run(model), answer), "everything is as it was"
