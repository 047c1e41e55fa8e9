"""Models that read images beside text: what is their decoder, where a prefix stands, and whose function is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama4.modeling_llama4 import Llama4VisionConfig, Llama4VisionModel

import antefix
from antefix.initialize import token_prefix
from tests.parity.compare import assert_close, assert_far, logits
from tests.parity.families import IMAGE, SMALL, VOCAB_SIZE, Family, draw_ids, draw_numbers
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


def hunyuan(*sections: int) -> Any:
    """Build one whose image tokens stand at a column, a row and an image, after the axes of places in the text."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    text = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 160, "rope_parameters": rope}
    vision = {**VISION, "out_hidden_size": 32, "text_hidden_size": 32, "max_image_size": 32, "num_key_value_heads": 4}
    config = {"text_config": text, "vision_config": vision, "image_token_id": IMAGE}
    return Family("", "vision-language", "HunYuanVLConfig", config, "HunYuanVLForConditionalGeneration").build()


def beside_rows_of_an_image() -> dict[str, Tensor]:
    """Draw one row with an image of two rows by two columns, each row with its end, and two tokens around it."""
    ids = torch.cat([draw_ids(1, 3), torch.full((1, 8), IMAGE), draw_ids(1, 5, 1)], 1)
    return {
        "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long(), "pixel_values": draw_numbers(16, 48),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }  # fmt: skip


def test_columns_and_rows_of_an_image_stay_where_they_are() -> None:
    """Text before an image moves the image in the text, not its patches in the image."""
    model, inputs, text = hunyuan(1, 1, 1, 1), beside_rows_of_an_image(), draw_ids(1, 9, seed=7)
    real = torch.ones_like(inputs["input_ids"])
    fronted = {name: torch.cat([torch.zeros_like(text), inputs[name]], 1) for name in ("mm_token_type_ids",)}
    fronted = {**inputs, **fronted, "input_ids": torch.cat([text, inputs["input_ids"]], 1)}
    read, bare = logits(model, **fronted)[:, 9:], logits(model, **inputs)
    written = model.generate(**fronted, max_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE, 2])[:, 25:]
    bank = antefix.attach(model, inputs)
    bank.add("text", token_prefix(model, text, [site for site in bank.sites if site.kind == "decoder"]))
    padded = {name: torch.nn.functional.pad(inputs[name], (4, 0)) for name in ("input_ids", "mm_token_type_ids")}
    padded = {**inputs, **padded, "attention_mask": torch.nn.functional.pad(real, (4, 0))}
    with bank.use("text"):
        assert_close(logits(model, **inputs), read)
        assert_close(logits(model, **padded)[:, 4:], read)
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[IMAGE, 2])[:, 16:]
    assert torch.equal(again, written)
    assert_far(bare, read)


def test_the_table_of_a_tower_is_not_its_decoders() -> None:
    """The layers of this decoder, and its tower with a place for each patch, lie in one stack."""
    vision = {"embed_dim": 32, "image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = {**SMALL, "additional_vocab_size": 0, "cross_layer_interval": 1, "use_resampler": False,
              "vision_config": {**vision, "intermediate_size": 48}}  # fmt: skip
    model = Family("", "vision-language", "IdeficsConfig", config, "IdeficsForVisionText2Text").build()
    inputs = {"input_ids": draw_ids(2, 7), "pixel_values": draw_numbers(2, 1, 3, 8, 8)}
    inputs |= {"image_attention_mask": torch.ones(2, 7, 1), "attention_mask": torch.ones(2, 7)}
    bare = logits(model, **inputs)
    bank = antefix.attach(model, inputs)
    bank.add("p", antefix.PrefixConfig(9, init="random"))
    actual = logits(model, **inputs)
    bank.deactivate()
    cache, prefix = DynamicCache(config=model.config), bank.prefix("p")
    for site in prefix.sites:
        key, value = (part[site.path].expand(2, -1, -1, -1) for part in (prefix.keys, prefix.values))
        cache.update(key, value, site.layer)
    cached = {"attention_mask": torch.ones(2, 16), "past_key_values": cache}
    assert_close(actual, logits(model, **inputs | cached))
    assert_far(actual, bare)


def test_an_image_that_no_axis_tells_from_text_is_refused() -> None:
    model, inputs = hunyuan(1, 1, 2), beside_rows_of_an_image()
    bank = antefix.attach(model, inputs)
    bank.add("p", antefix.PrefixConfig(3, init="random"))
    logits(model, input_ids=draw_ids(1, 5))
    with pytest.raises(antefix.UnsupportedModelError, match="tells the tokens of an image by their places"):
        model(**inputs)
    with bank.use(None):
        logits(model, **inputs)


def test_what_generate_calls_outside_a_forward_is_the_bases_where_no_prefix_stands() -> None:
    """Kosmos-2 sums images up by cross-attention before it generates."""
    text = {"vocab_size": VOCAB_SIZE, "embed_dim": 32, "layers": 2, "attention_heads": 4, "ffn_dim": 48}
    config = {"text_config": text, "vision_config": VISION, "latent_query_num": 4}
    model: Any = Family("", "vision-language", "Kosmos2Config", config, "Kosmos2ForConditionalGeneration").build()
    ids = torch.cat([draw_ids(2, 1), torch.full((2, 4), IMAGE), draw_ids(2, 3)], 1)
    inputs = {"input_ids": ids, "pixel_values": draw_numbers(2, 3, 8, 8)}
    inputs["image_embeds_position_mask"] = (ids == IMAGE).long()
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
    bare = model.generate(**inputs, **settings)
    bank = antefix.attach(model, inputs)
    bank.add("usual", antefix.PrefixConfig(3, init="random"))
    bank.add("asked", antefix.PrefixConfig(3, init="random", sites=("cross",)))
    with bank.use("usual"):
        after = model.generate(**inputs, **settings)
        assert torch.equal(after[:, -3], logits(model, **inputs)[:, -1].argmax(-1))
    with bank.use("asked"), pytest.raises(antefix.UnsupportedModelError, match="outside a forward of its model"):
        model.generate(**inputs, **settings)
    with bank.use(None):
        assert torch.equal(model.generate(**inputs, **settings), bare)


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
