"""Gradients of a prefix do not depend on how the forward is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import antefix
from tests.conftest import build_model, draw_ids


def inputs(model: PreTrainedModel, seed: int) -> dict[str, Any]:
    ids = draw_ids(2, 6, seed=seed)
    return {"input_ids": ids, "labels": draw_ids(2, 5, seed=seed + 10) if model.config.is_encoder_decoder else ids}


def gradients(model: PreTrainedModel) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.antefix_prefixes.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
@pytest.mark.parametrize("name", ["llama", "t5", "gpt2", "bart"])
def test_checkpointed_equals_plain(name: str, reparameterization: Any) -> None:
    model = build_model(name)
    bank = antefix.attach(model)
    config = antefix.PrefixConfig(5, init="random", reparameterization=reparameterization, encoder_hidden_size=16)
    bank.add("p", config)
    model.train()
    for module in model.modules():  # dropout would draw other numbers in the second run
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for attribute in ("dropout", "activation_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    plain = model(**inputs(model, 0)).loss
    plain.backward()
    expected = gradients(model)
    model.activation_checkpointing_enable()
    checkpointed = model(**inputs(model, 0)).loss
    checkpointed.backward()
    actual = gradients(model)
    assert expected
    assert all(gradient.abs().max() > 1e-6 for gradient in expected)
    # T5 gives sdpa another mask when it checkpoints, and so another kernel: the last bits may differ.
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if name == "t5" else {"atol": 0.0, "rtol": 0.0}
    torch.testing.assert_close([checkpointed, *actual], [plain, *expected], **tolerance)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_two_interleaved_forwards_equal_separate_ones(name: str, checkpointing: bool) -> None:
    model = build_model(name, **({"dropout_rate": 0.0} if name == "t5" else {}))
    bank = antefix.attach(model)
    bank.add("a", antefix.PrefixConfig(4, init="random"))
    bank.add("b", antefix.PrefixConfig(6, init="random"))
    if checkpointing:
        model.activation_checkpointing_enable()
    model.train()

    def loss(prefix: str, seed: int) -> torch.Tensor:
        with bank.use(prefix):
            return model(**inputs(model, seed)).loss

    loss("a", 1).backward()
    loss("b", 2).backward()
    expected = gradients(model)
    (loss("a", 1) + loss("b", 2)).backward()
    actual = gradients(model)
    assert len(expected) == len(actual) >= 2
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-7, rtol=1e-5)


def test_reentrant_checkpointing_is_refused() -> None:
    model = build_model("llama")
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(antefix.UnsupportedModelError, match="use_reentrant"):
        model(**inputs(model, 0))


def test_the_base_is_frozen_and_the_first_token_stays() -> None:
    from transformers import AutoTokenizer

    from antefix.embedded import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = build_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(6), tokenizer=tokenizer)
    before = bank.prefix("p")
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert [id(p) for p in trainable] == [id(p) for p in model.antefix_prefixes.parameters()]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.1)
    ids = draw_ids(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    after = bank.prefix("p")
    for path in before.keys:
        assert torch.equal(before.keys[path][:, 0], after.keys[path][:, 0])
        assert not torch.equal(before.keys[path][:, 1:], after.keys[path][:, 1:])


def test_a_bf16_base_trains_an_fp32_prefix() -> None:
    model = build_model("llama").to(torch.bfloat16)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    ids = draw_ids(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    (parameter,) = model.antefix_prefixes.parameters()
    assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert parameter.grad.abs().max() > 0
