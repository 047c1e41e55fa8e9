"""Positions that families count in ways of their own, and masks that are longer than what they hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, StaticCache
from transformers.models.dia.configuration_dia import DiaEncoderConfig
from transformers.models.dia.modeling_dia import DiaEncoder
from transformers.models.inkling.modeling_inkling import InklingTextConfig, InklingTextModel
from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2TextConfig
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2TextModel

import antefix
from antefix.initialize import random_prefix, token_prefix
from tests.parity.compare import assert_close, assert_far, logits
from tests.parity.families import FAMILIES, SMALL, VOCAB_SIZE, Family, draw_ids
from tests.parity.reference import register_reference

PADDING = 1
TEXT, ROWS = draw_ids(1, 9, seed=7), draw_ids(2, 8, seed=3)


def esm() -> PreTrainedModel:
    settings = {**SMALL, "pad_token_id": PADDING, "mask_token_id": VOCAB_SIZE - 1, "num_hidden_layers": 1}
    config = transformers.EsmConfig(**settings, position_embedding_type="absolute", token_dropout=False)
    return transformers.EsmModel(config)


def kosmos() -> PreTrainedModel:
    config = Kosmos2TextConfig(
        vocab_size=VOCAB_SIZE, embed_dim=32, layers=1, ffn_dim=48, attention_heads=4, pad_token_id=PADDING
    )
    return Kosmos2TextModel(config)


def roberta() -> PreTrainedModel:
    config = transformers.RobertaConfig(**{**SMALL, "pad_token_id": PADDING, "num_hidden_layers": 1})
    return transformers.RobertaModel(config)


def built(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(1)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


def padded(ids: Tensor) -> dict[str, Tensor]:
    ids = torch.cat([torch.full((len(ids), 3), PADDING), ids], 1)
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long()}


@pytest.mark.parametrize("build", [esm, kosmos])
def test_a_stack_that_counts_from_after_its_padding_index(build: Callable[[], PreTrainedModel]) -> None:
    """One layer, so that a text cannot see what follows it even where its attention looks ahead."""
    model = built(build)
    read = logits(model, input_ids=torch.cat([TEXT.expand(len(ROWS), -1), ROWS], 1))[:, TEXT.shape[1] :]
    bare, bare_padded = logits(model, input_ids=ROWS), logits(model, **padded(ROWS))
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        assert_close(logits(model, input_ids=ROWS), read)
        assert_close(logits(model, **padded(ROWS))[:, 3:], read)
    with bank.use(["text", None]):
        mixed, mixed_padded = logits(model, input_ids=ROWS), logits(model, **padded(ROWS))
    assert_close(mixed[0], read[0])
    assert_close(mixed[1], bare[1])
    assert_close(mixed_padded[1, 3:], bare_padded[1, 3:])
    assert_far(bare, read)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("build", [esm, kosmos, roberta])
def test_padding_that_only_its_ids_tell(build: Callable[[], PreTrainedModel], side: str) -> None:
    """Without a mask it is attended to, and the base gives it a place of its own."""
    model = built(build)
    padding = torch.full((len(ROWS), 3), PADDING)
    ids = torch.cat([padding, ROWS] if side == "left" else [ROWS, padding], 1)
    read = logits(model, input_ids=torch.cat([TEXT.expand(len(ROWS), -1), ids], 1))[:, TEXT.shape[1] :]
    bare = logits(model, input_ids=ids)
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        assert_close(logits(model, input_ids=ids), read)
    with bank.use(["text", None]):
        mixed = logits(model, input_ids=ids)
    assert_close(mixed[0], read[0])
    assert_close(mixed[1], bare[1])
    assert_far(bare, read)


@pytest.mark.parametrize("build", [kosmos, roberta])
def test_bare_rows_of_embeddings_stand_where_the_base_puts_them(build: Callable[[], PreTrainedModel]) -> None:
    """The base cannot tell which of them are padding, so it counts them all."""
    model = built(build)
    mask = padded(ROWS)["attention_mask"]
    embeds = model.get_input_embeddings()(padded(ROWS)["input_ids"]).detach()
    bare = logits(model, inputs_embeds=embeds, attention_mask=mask)[:, 3:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        whole = logits(model, inputs_embeds=embeds[:, 3:])
    with bank.use(["text", None]):
        mixed = logits(model, inputs_embeds=embeds, attention_mask=mask)[:, 3:]
    assert_close(mixed[0], whole[0])
    assert_close(mixed[1], bare[1])


_SMALL_SEQ2SEQ = {
    "vocab_size": VOCAB_SIZE, "pad_token_id": PADDING, "decoder_start_token_id": 2, "d_model": 32,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 12,
}  # fmt: skip
# Their tables of sinusoids have 12 rows, so they must grow; UMT5 has a bias by distance in each layer.
COUNTING = [
    Family("M2M100", "encoder-decoder", "M2M100Config", _SMALL_SEQ2SEQ, "AutoModelForSeq2SeqLM"),
    Family("SeamlessM4T", "encoder-decoder", "SeamlessM4TConfig", _SMALL_SEQ2SEQ | {
        "hidden_size": 32, "speech_encoder_layers": 1, "speech_encoder_attention_heads": 4,
        "speech_encoder_intermediate_size": 48, "t2u_vocab_size": VOCAB_SIZE}, "SeamlessM4TForTextToText"),
    Family("UMT5", "encoder-decoder", "UMT5Config", {
        "vocab_size": VOCAB_SIZE, "pad_token_id": PADDING, "decoder_start_token_id": 2, "d_model": 32, "d_kv": 8,
        "d_ff": 48, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12}, "AutoModelForSeq2SeqLM"),
]  # fmt: skip


@pytest.mark.parametrize("family", COUNTING, ids=lambda family: family.name)
def test_encoder_decoders_that_count_in_a_way_of_their_own(family: Family) -> None:
    model, reader = family.build(), family.build()
    reader.set_attn_implementation(register_reference(TEXT.shape[1]))
    inputs = {"input_ids": ROWS, "decoder_input_ids": draw_ids(2, 5, seed=4)}
    text = TEXT.expand(len(ROWS), -1)
    in_context = {name: torch.cat([text, ids], 1) for name, ids in inputs.items()}
    in_context["attention_mask"] = torch.ones_like(in_context["input_ids"])  # without one, some make none to change
    read = logits(reader, **in_context, use_cache=False)[:, TEXT.shape[1] :]
    bare = logits(model, **inputs)
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        assert_close(logits(model, **inputs), read)
        assert_close(logits(model, **padded(ROWS), decoder_input_ids=inputs["decoder_input_ids"]), read)
    with bank.use(["text", None]):
        mixed = logits(model, **inputs)
    assert_close(mixed[0], read[0])
    assert_close(mixed[1], bare[1])
    assert_far(bare, read)


@pytest.mark.parametrize("family", COUNTING, ids=lambda family: family.name)
def test_they_write_as_they_do_without_a_cache(family: Family) -> None:
    model = family.build()
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use(["text", None]):
        cached, plain = (model.generate(ROWS, do_sample=False, max_new_tokens=6, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)


def test_positions_that_a_prefix_cannot_move_are_refused_before_training() -> None:
    """One that computes sinusoids for all rows at once, in a decoder whose encoder attends in a way of its own."""
    family = Family("PegasusX", "encoder-decoder", "PegasusXConfig", _SMALL_SEQ2SEQ, "AutoModelForSeq2SeqLM")
    model = family.build()
    bank = antefix.attach(model)
    for source in (antefix.PrefixConfig(4, init="random"), random_prefix(bank.sites, 4)):
        with pytest.raises(antefix.UnsupportedModelError, match=r"positions of its decoder .* sites=\('cross',\)"):
            bank.add("p", source)
    assert bank.names == []
    bank.add("p", antefix.PrefixConfig(4, init="random", sites=("cross",)))
    inputs = {"input_ids": ROWS, "decoder_input_ids": ROWS[:, :3]}
    with bank.use(None):
        bare = logits(model, **inputs)
    assert_far(logits(model, **inputs), bare)


def test_a_bias_by_places_on_a_page_is_no_distance_to_a_prefix() -> None:
    """The encoder adds a bias by boxes, which no prefix has, to that by distance; its decoder has the latter alone."""
    family = Family("UDOP", "encoder-decoder", "UdopConfig", {
        "vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "pad_token_id": 0, "decoder_start_token_id": 0}, "UdopForConditionalGeneration")  # fmt: skip
    model, corners = family.build(), torch.rand(2, 8, 4, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ROWS, "bbox": corners.sort(-1).values, "decoder_input_ids": ROWS[:, :3]}
    bare = logits(model, **inputs)
    bank = antefix.attach(model, inputs)
    with pytest.raises(antefix.UnsupportedModelError, match=r"of its encoder .* sites=\('decoder', 'cross'\)"):
        bank.add("p", antefix.PrefixConfig(4, init="random"))
    bank.add("p", antefix.PrefixConfig(4, init="random", sites=("decoder", "cross")))
    assert_far(logits(model, **inputs), bare)


def recurrent_gemma() -> PreTrainedModel:
    """Build one whose recurrent state begins anew at the first position, where no token stands behind a prefix."""
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            **{**SMALL, "num_hidden_layers": 3}, num_key_value_heads=1, lru_width=32, attention_window_size=8
        )
    )


def deepseek_v4() -> PreTrainedModel:
    """Build one that tells by positions which blocks of keys lie in the past, and would see the future."""
    return transformers.DeepseekV4ForCausalLM(transformers.DeepseekV4Config(**SMALL, head_dim=16, q_lora_rank=16))


def dia_encoder() -> PreTrainedModel:
    """Build one that rotates by positions and takes none."""
    return DiaEncoder(DiaEncoderConfig(**SMALL, num_key_value_heads=4, head_dim=8))


@pytest.mark.parametrize("build", [recurrent_gemma, deepseek_v4, dia_encoder])
def test_positions_that_mean_more_than_a_place_are_refused(build: Callable[[], PreTrainedModel]) -> None:
    bank = antefix.attach(built(build))
    with pytest.raises(antefix.UnsupportedModelError, match="in a way that a prefix cannot move; no prefix"):
        bank.add("p", antefix.PrefixConfig(4, init="random"))


@pytest.mark.parametrize("selection", ["text", ["text", None]])
def test_a_mask_as_long_as_a_static_cache(selection: Any) -> None:
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    cache = StaticCache(config=model.config, max_cache_len=20)
    mask, length = torch.zeros(2, 20, dtype=torch.long), ROWS.shape[1]
    with bank.use(selection):
        whole = logits(model, input_ids=ROWS)
        for start, stop in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
            mask[:, start:stop] = 1
            step = logits(model, input_ids=ROWS[:, start:stop], attention_mask=mask, past_key_values=cache)
            assert_close(step, whole[:, start:stop])


@pytest.mark.parametrize("name", ["GPT-2", "BERT"])
def test_what_is_hidden_behind_a_row_needs_no_position(name: str) -> None:
    """Each row fits with its own prefix, and the padding of the shorter one would not."""
    family = FAMILIES[name]
    model = replace(family, settings={**family.settings, "max_position_embeddings": 16}).build()
    bank = antefix.attach(model)
    bank.add("long", random_prefix(bank.sites, 8))
    bank.add("short", random_prefix(bank.sites, 2))
    ids = draw_ids(2, 10)
    ids[0, 6:] = 0
    with bank.use(["long", "short"]):
        mixed = logits(model, input_ids=ids, attention_mask=(ids != 0).long())
    for row, (selection, length) in enumerate((("long", 6), ("short", 10))):
        with bank.use(selection):
            assert_close(mixed[row, :length], logits(model, input_ids=ids[row : row + 1, :length])[0])


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT"])
def test_a_hole_in_the_mask_stays_as_wide_as_the_base_leaves_it(name: str) -> None:
    """Llama and GPT-2 count the hidden columns between two shown ones, OPT does not."""
    model = FAMILIES[name].build()
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0, 1]])
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        answered = logits(model, input_ids=ROWS, attention_mask=mask)
        together = logits(model, input_ids=ROWS, attention_mask=torch.ones_like(mask))
    for row, padding in ((0, 0), (1, 2)):
        real = mask[row : row + 1, padding:]
        ids = torch.cat([TEXT, ROWS[row : row + 1, padding:]], 1)
        shown = torch.cat([torch.ones_like(TEXT), real], 1)
        with bank.use(None):
            read = logits(model, input_ids=ids, attention_mask=shown)[:, TEXT.shape[1] :]
        assert_close(answered[row, padding:][real[0].bool()], read[real.bool()])
        assert_far(together[row, padding:][real[0].bool()], read[real.bool()])


def test_numbers_of_documents_in_a_mask_show_a_token_once() -> None:
    model = FAMILIES["Llama"].build()
    numbered = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2], [0, 1, 1, 2, 2, 2, 3, 3]])
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use("text"):
        expected = logits(model, input_ids=ROWS, attention_mask=numbered.bool().long())
        assert_close(logits(model, input_ids=ROWS, attention_mask=numbered), expected)


def test_a_table_that_could_count_the_mask_but_is_given_places() -> None:
    config = transformers.BioGptConfig(**SMALL | {"pad_token_id": PADDING})
    model = built(lambda: transformers.BioGptForCausalLM(config))
    bare = logits(model, **padded(ROWS))[:, 3:]
    bank = antefix.attach(model)
    bank.add("text", token_prefix(model, TEXT, bank.sites))
    with bank.use(["text", None]):
        mixed = logits(model, **padded(ROWS))[:, 3:]
    with bank.use("text"):
        assert_close(mixed[0], logits(model, input_ids=ROWS)[0])
    assert_close(mixed[1], bare[1])


def test_a_bias_by_distance_that_nobody_can_tell_of_a_prefix_is_refused() -> None:
    model = InklingTextModel(InklingTextConfig(**SMALL, num_key_value_heads=2)).eval()
    bank = antefix.attach(model)
    bank.add("p", random_prefix(bank.sites, 5))
    with bank.use("p"), pytest.raises(antefix.UnsupportedModelError, match="adds a bias by distance that antefix"):
        model(input_ids=ROWS)
    with bank.use(None):
        logits(model, input_ids=ROWS)
