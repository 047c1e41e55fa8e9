"""Towers beside a decoder: their rows are images, and whether `attach` finds them depends on what it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import antefix
from antefix.initialize import random_prefix
from antefix.prefix import geometry_fingerprint
from tests.parity.compare import assert_close, assert_far, attach, logits
from tests.parity.families import FAMILIES, IMAGE, Family, draw_ids, draw_numbers

LLAVA, WHISPER = FAMILIES["LLaVA"], FAMILIES["Whisper"]
VISION_LANGUAGE = [family for family in FAMILIES.values() if family.group == "vision-language"]


def documents(*images: int) -> dict[str, Tensor]:
    """Draw a row for each number of images, padded on the left."""
    rows = [torch.cat([torch.full((4 * number,), IMAGE), draw_ids(1, 5, row)[0]]) for row, number in enumerate(images)]
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": draw_numbers(sum(images), 3, 8, 8)}


def one_row(inputs: dict[str, Tensor], row: int, images: Sequence[int]) -> dict[str, Tensor]:
    """Return what one row of `documents` reads."""
    pixels = inputs["pixel_values"][sum(images[:row]) : sum(images[: row + 1])]
    return {name: value[row : row + 1] for name, value in inputs.items()} | {"pixel_values": pixels}


@pytest.mark.parametrize("images", [(1, 1), (2, 1), (3, 1)])
def test_rows_with_prefixes_of_a_decoder_have_as_many_images_as_they_like(images: tuple[int, int]) -> None:
    model = LLAVA.build()
    bank = attach(LLAVA, model)
    for name, length in (("a", 3), ("b", 8)):
        bank.add(name, antefix.PrefixConfig(length, init="random"))
    inputs = documents(*images)
    with bank.use(["a", "b"]):
        mixed = logits(model, **inputs)
    for row, name in enumerate("ab"):
        with bank.use(name):
            assert_close(mixed[row, -5:], logits(model, **one_row(inputs, row, images))[0, -5:])


def test_rows_of_a_tower_that_are_not_those_of_the_batch_share_one_prefix() -> None:
    model = LLAVA.build()
    bank = attach(LLAVA, model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(3, init="random", sites=("encoder",)))
    bank.add("decoder", antefix.PrefixConfig(3, init="random"))
    for images in ((2, 1), (3, 1)):
        for names in (["a", "b"], ["a", None], ["a", "decoder"]):
            with bank.use(names), pytest.raises(antefix.ConfigError, match="are not those of the batch"):
                logits(model, **documents(*images))
    inputs = documents(2, 1)
    with bank.use("a"):
        expected = logits(model, **inputs)
    with bank.use(["a", "a"]):
        assert_close(logits(model, **inputs), expected)
    with bank.use(None):
        assert_far(logits(model, **inputs), expected)


@pytest.mark.parametrize("times", [1, 3])
def test_an_encoder_of_the_batch_has_a_prefix_for_each_row(times: int) -> None:
    """Also where `generate` multiplies the rows before it, as Whisper's own does for several answers."""
    model = WHISPER.build()
    bank = attach(WHISPER, model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(3, init="random", sites=("encoder",)))
    inputs = {name: value.repeat_interleave(times, 0) for name, value in WHISPER.draw_inputs().items()}
    with bank.use(["a", "b"]):
        mixed = logits(model, **inputs)
    for name, rows, others in (("a", slice(times), slice(times, None)), ("b", slice(times, None), slice(times))):
        with bank.use(name):
            alone = logits(model, **inputs)
        assert_close(mixed[rows], alone[rows])
        assert_far(mixed[others], alone[others])


@pytest.mark.parametrize("family", VISION_LANGUAGE, ids=lambda family: family.name)
def test_a_prefix_of_a_decoder_fits_with_and_without_its_tower(family: Family, tmp_path: Path) -> None:
    model = family.build()
    for name in ("shown", "not shown"):
        bank = attach(family, model) if name == "shown" else antefix.attach(model)
        bank.add(name, antefix.PrefixConfig(3, init="random"))
        bank.save(name, tmp_path / name)
        bank.detach()
    for shown in (True, False):
        bank = attach(family, model) if shown else antefix.attach(model)
        for name in ("shown", "not shown"):
            bank.load(tmp_path / name, name)
            assert bank.prefix(name).content_hash() == antefix.load_prefix(tmp_path / name).content_hash()
        bank.detach()


def test_a_prefix_of_a_tower_or_of_a_deeper_model_fits_no_other() -> None:
    model = LLAVA.build()
    bank = attach(LLAVA, model)
    bank.add("tower", antefix.PrefixConfig(3, init="random", sites=("encoder",)))
    tower = bank.prefix("tower")
    bank.detach()
    with pytest.raises(antefix.PrefixMismatchError, match="no encoder attention"):
        antefix.attach(model).add("tower", tower)
    deep, flat = FAMILIES["Llama"].build(), FAMILIES["Llama"].build()
    del flat.model.layers[1]
    deep_bank, flat_bank = antefix.attach(deep), antefix.attach(flat)
    deep_bank.add("first", antefix.PrefixConfig(3, init="random", layers=(0,)))
    with pytest.raises(antefix.PrefixMismatchError, match="1 sites are not all those that were found in the other"):
        flat_bank.add("first", deep_bank.prefix("first"))
    flat_bank.add("p", random_prefix(flat_bank.sites, 3))
    with pytest.raises(antefix.PrefixMismatchError, match="2 sites are not all those"):
        deep_bank.add("p", flat_bank.prefix("p"))


def test_a_prefix_that_names_its_tower_still_fits() -> None:
    """Files written when the fingerprint was always of all sites."""
    model = LLAVA.build()
    bank = attach(LLAVA, model)
    bank.add("p", antefix.PrefixConfig(3, init="random"))
    made = bank.prefix("p")
    of_all = geometry_fingerprint(bank.sites)
    old = antefix.Prefix(made.sites, made.keys, made.values, {"fingerprint": of_all})
    bank.add("old", old)
    assert bank.prefix("old").metadata["fingerprint"] == made.metadata["fingerprint"] != of_all
