"""`generate` with a prefix equals decoding by hand, greedily and with beams, whatever the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import antefix
from tests.conftest import build_model, draw_ids

NAMES = ["llama", "gpt2", "t5", "bart"]


def with_prefix(name: str, **settings: Any) -> tuple[PreTrainedModel, antefix.PrefixBank]:
    model = build_model(name, **settings)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(num_virtual_tokens=5, init="random"))
    return model, bank


def next_logits(model: PreTrainedModel, prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of the next token from one whole forward without a cache."""
    if model.config.is_encoder_decoder:
        inputs: dict[str, Any] = {"input_ids": prompt.expand(len(answer), -1), "decoder_input_ids": answer}
    else:
        inputs = {"input_ids": answer}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[:, -1].log_softmax(-1)


def start(model: PreTrainedModel, prompt: torch.Tensor) -> torch.Tensor:
    if not model.config.is_encoder_decoder:
        return prompt
    return torch.full((len(prompt), 1), model.config.decoder_start_token_id)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_greedy_equals_step_by_step(name: str, cache: dict[str, Any]) -> None:
    model, _ = with_prefix(name)
    prompt = draw_ids(1, 6)
    expected = start(model, prompt)
    for _ in range(10):
        expected = torch.cat([expected, next_logits(model, prompt, expected).argmax(-1, keepdim=True)], 1)
    actual = model.generate(
        prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, disable_compile=True, **cache
    )
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_beams_equal_beams_by_hand(name: str) -> None:
    model, _ = with_prefix(name)
    prompt = draw_ids(1, 6)
    beams, scores = start(model, prompt), torch.zeros(1)
    for _ in range(8):
        totals = (scores[:, None] + next_logits(model, prompt, beams)).flatten()
        scores, chosen = totals.topk(3)
        vocabulary = model.config.vocab_size
        beams = torch.cat([beams[chosen // vocabulary], (chosen % vocabulary)[:, None]], 1)
    actual = model.generate(
        prompt,
        max_new_tokens=8,
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        eos_token_id=None,
        length_penalty=0.0,
    )
    assert torch.equal(actual, beams)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_mixed_batch_equal_their_solo_runs(name: str, implementation: str) -> None:
    model, bank = with_prefix(name, attn_implementation=implementation)
    bank.add("longer", antefix.PrefixConfig(num_virtual_tokens=8, init="random"))
    prompts = draw_ids(3, 6)
    choice = ["longer", None, "p"]
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "num_beams": 2}
    with bank.use(choice):
        mixed = model.generate(prompts, **settings)
    for row, selection in enumerate(choice):
        with bank.use(selection):
            assert torch.equal(mixed[row], model.generate(prompts[row : row + 1], **settings)[0])
    assert not torch.equal(mixed[0], mixed[2])


@pytest.mark.parametrize("name", NAMES)
def test_left_padded_rows_equal_their_solo_runs(name: str) -> None:
    model, bank = with_prefix(name)
    bank.add("longer", antefix.PrefixConfig(num_virtual_tokens=8, init="random"))
    short, long = draw_ids(1, 4), draw_ids(1, 7, seed=2)
    prompts = torch.cat([torch.nn.functional.pad(short, (3, 0)), long])
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with bank.use(["longer", "p"]):
        mixed = model.generate(prompts, attention_mask=(prompts != 0).long(), **settings)
    for row, prompt, selection in ((0, short, "longer"), (1, long, "p")):
        with bank.use(selection):
            solo = model.generate(prompt, **settings)[0]
        assert torch.equal(mixed[row][-8:], solo[-8:])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_mixed_batch_equal_those_of_its_rows(name: str, implementation: str) -> None:
    # Tokens hide small errors: an encoder's eager attention without a mask once added True to the scores.
    model, bank = with_prefix(name, attn_implementation=implementation)
    bank.add("longer", antefix.PrefixConfig(num_virtual_tokens=8, init="random"))
    prompts, answers = draw_ids(3, 6), draw_ids(3, 4, seed=1)

    def logits(rows: slice, selection: Any) -> torch.Tensor:
        inputs = {"input_ids": prompts[rows]}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = answers[rows]
        with bank.use(selection), torch.no_grad():
            return model(**inputs).logits

    choice = ["longer", None, "p"]
    mixed = logits(slice(3), choice)
    solo = [logits(slice(row, row + 1), selection) for row, selection in enumerate(choice)]
    # fp32 rounding on logits of up to about 10 is 1e-5; the mistake above is off by 1e-3 to 2.
    torch.testing.assert_close(mixed, torch.cat(solo), atol=1e-4, rtol=0)
