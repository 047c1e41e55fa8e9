"""Models that count positions, or change the mask, before they call the stack whose rows have prefixes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import antefix
from tests.parity.compare import assert_close, assert_far, logits
from tests.parity.families import FAMILIES, IMAGE, SMALL, VOCAB_SIZE, draw_ids

PADDING, ROWS = 4, draw_ids(2, 7, seed=3)


def gemma() -> PreTrainedModel:
    """Build one that makes a mask for each kind of layer before it calls the stack."""
    return FAMILIES["Gemma 3 multimodal"].build()


def fuyu() -> PreTrainedModel:
    """Build one that counts every column and hands those positions down."""
    config = transformers.FuyuConfig(text_config={**SMALL, "model_type": "persimmon"}, vocab_size=VOCAB_SIZE)
    return transformers.FuyuForCausalLM(config).eval()


def paligemma() -> PreTrainedModel:
    """Build one that counts from 1, and whose decoder looks ahead."""
    text = {**SMALL, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_token_index=IMAGE
    )
    return transformers.PaliGemmaForConditionalGeneration(config).eval()


def answers(model: PreTrainedModel, input_ids: Tensor, **inputs: object) -> Tensor:
    """Return logits; PaliGemma hides what is ahead only where it is told that no token is part of an image."""
    told = {"token_type_ids": torch.zeros_like(input_ids)} if model.config.model_type == "paligemma" else {}
    return logits(model, input_ids=input_ids, **told, **inputs)


def padded(ids: Tensor, number: int = PADDING) -> dict[str, Tensor]:
    real = torch.ones_like(ids)
    return {
        "input_ids": torch.nn.functional.pad(ids, (number, 0)),
        "attention_mask": torch.nn.functional.pad(real, (number, 0)),
    }


def with_prefixes(build: Callable[[], PreTrainedModel]) -> tuple[PreTrainedModel, antefix.PrefixBank]:
    torch.manual_seed(0)
    model = build()
    bank = antefix.attach(model)
    for name, length in (("a", 3), ("b", 5)):
        bank.add(name, antefix.PrefixConfig(length, init="random"))
    return model, bank


@pytest.mark.parametrize("build", [gemma, fuyu, paligemma])
def test_padding_leaves_no_gap_behind_a_prefix(build: Callable[[], PreTrainedModel]) -> None:
    model, bank = with_prefixes(build)
    with bank.use("a"):
        expected = answers(model, input_ids=ROWS)
        assert_close(answers(model, **padded(ROWS))[:, PADDING:], expected)
    with bank.use(["b", None]):
        mixed, alone = answers(model, **padded(ROWS)), answers(model, input_ids=ROWS)
    bank.deactivate()
    bare = answers(model, **padded(ROWS))
    assert_close(mixed[0, PADDING:], alone[0])
    assert_close(mixed[1, PADDING:], bare[1, PADDING:])
    assert_far(expected, alone)


@pytest.mark.parametrize("build", [gemma, fuyu, paligemma])
def test_nor_does_it_from_one_token_to_the_next(build: Callable[[], PreTrainedModel]) -> None:
    model, bank = with_prefixes(build)
    inputs, both = padded(ROWS), []
    with bank.use("b"):
        for ids, mask in ((ROWS, torch.ones_like(ROWS)), (inputs["input_ids"], inputs["attention_mask"])):
            cache = DynamicCache(config=model.config.get_text_config())
            for step in (ids[:, :-2], ids[:, -2:-1], ids[:, -1:]):
                seen = mask[:, : cache.get_seq_length() + step.shape[1]]
                last = answers(model, input_ids=step, attention_mask=seen, past_key_values=cache)[:, -1]
            both.append(last)
    assert_close(both[1], both[0])


@pytest.mark.parametrize("build", [gemma, fuyu, paligemma])
def test_positions_that_the_caller_gives_are_his(build: Callable[[], PreTrainedModel]) -> None:
    """Counted from the mask they are what antefix counts itself; two further on, they are two further on."""
    model, bank = with_prefixes(build)
    inputs = padded(ROWS)
    first = 1 if build is paligemma else 0
    counted = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0) + first
    with bank.use("a"):
        expected = answers(model, **inputs)
        assert_close(answers(model, **inputs, position_ids=counted)[:, PADDING:], expected[:, PADDING:])
        assert_far(
            answers(model, **inputs, position_ids=counted + 2 * torch.arange(11))[:, PADDING:], expected[:, PADDING:]
        )
