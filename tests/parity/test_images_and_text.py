"""Models that read images beside text: what is their decoder, where a prefix stands, and whose function is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.llama4.modeling_llama4 import Llama4VisionConfig, Llama4VisionModel

import antefix
from antefix.initialize import token_prefix
from tests.parity.compare import assert_far, logits
from tests.parity.families import IMAGE, SMALL, VOCAB_SIZE, draw_ids, draw_numbers
from tests.parity.test_outer_mask import paligemma

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip


def beside_image(num_image_tokens: int) -> dict[str, Tensor]:
    ids = torch.cat([torch.full((2, num_image_tokens), IMAGE), draw_ids(2, 5)], 1)
    return {"input_ids": ids, "pixel_values": draw_numbers(2, 3, 8, 8)}


def test_a_decoder_that_looks_ahead_is_one() -> None:
    model = paligemma()
    inputs = beside_image(4)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    bank = antefix.attach(model, inputs)
    assert {(site.path.split(".layers")[0], site.kind) for site in bank.sites} == {
        ("model.vision_tower.encoder", "encoder"), ("model.language_model", "decoder")
    }  # fmt: skip
    bank.add("p", antefix.PrefixConfig(3, init="random"))
    assert {site.kind for site in bank.prefix("p").sites} == {"decoder"}


def test_cross_attention_of_a_tower_is_no_decoders() -> None:
    """A resampler sums an image up by cross-attention; a prefix stands there where it is asked to."""
    config = transformers.Idefics2Config(
        vision_config=VISION, text_config={**SMALL, "model_type": "mistral", "num_key_value_heads": 2},
        perceiver_config={
            "hidden_size": 32, "resampler_n_latents": 3, "resampler_depth": 1, "resampler_n_heads": 4,
            "num_key_value_heads": 2, "resampler_head_dim": 8},
        image_token_id=IMAGE,
    )  # fmt: skip
    model = transformers.Idefics2ForConditionalGeneration(config).eval()
    inputs = beside_image(3)
    inputs["pixel_values"] = inputs["pixel_values"][:, None]
    bank = antefix.attach(model, inputs)
    assert {site.kind for site in bank.sites} == {"encoder", "decoder", "cross"}
    bank.add("usual", antefix.PrefixConfig(3, init="random"))
    bank.add("asked", antefix.PrefixConfig(3, init="random", sites=("cross",)))
    assert {site.kind for site in bank.prefix("usual").sites} == {"decoder"}
    assert "resampler" in bank.prefix("asked").sites[0].path


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_file_may_have_an_eager_function_of_its_own_for_images(implementation: str) -> None:
    config = Llama4VisionConfig(
        **{**VISION, "intermediate_size": 128}, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32
    )
    model = Llama4VisionModel(config).eval()
    model.set_attn_implementation(implementation)
    inputs = {"pixel_values": draw_numbers(2, 3, 8, 8)}
    bare = logits(model, **inputs)
    bank = antefix.attach(model, inputs)
    assert torch.equal(logits(model, **inputs), bare)
    bank.add("p", antefix.PrefixConfig(3, init="random"))
    assert_far(logits(model, **inputs), bare)


def clip() -> transformers.PreTrainedModel:
    text: dict[str, Any] = {**SMALL, "projection_dim": 8, "eos_token_id": VOCAB_SIZE - 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    ).eval()


def test_what_reads_no_text_alone_says_so() -> None:
    model = clip()
    with pytest.raises(antefix.UnsupportedModelError, match=r"does not run on a few token ids alone.*example_inputs"):
        antefix.attach(model)
    inputs = {"input_ids": draw_ids(2, 6), "pixel_values": draw_numbers(2, 3, 8, 8)}
    bank = antefix.attach(model, inputs)
    with pytest.raises(antefix.UnsupportedModelError, match=r"does not read a text alone.*init='random'"):
        token_prefix(model, draw_ids(1, 4), bank.sites)


def test_keys_that_are_not_those_of_the_text_are_no_prefix() -> None:
    """The merged attention of this decoder sees its own tokens and the encoder's, side by side."""
    text = {**SMALL, "head_dim": 8, "num_key_value_heads": 2}
    config = transformers.T5Gemma2Config(
        encoder={"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4}, decoder=text,
        image_token_index=IMAGE,
    )  # fmt: skip
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    sites = antefix.discover_sites(model)
    with pytest.raises(antefix.UnsupportedModelError, match="does not attend to the 4 tokens of a text"):
        token_prefix(model, draw_ids(1, 4), sites)
