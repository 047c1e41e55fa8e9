"""Shares of attention, held against the base's own weights with the text of the prefix in context."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

import antefix
from antefix.initialize import random_prefix, token_prefix
from antefix.inspect.attention import AttentionShares
from antefix.sites import Kind
from tests.conftest import build_model


def _eager(name: str) -> PreTrainedModel:
    model = build_model(name)
    model.set_attn_implementation("eager")
    return model


def test_shares_are_those_of_the_text_in_context() -> None:
    model = _eager("llama")
    text, rows = torch.randint(3, 67, (1, 5)), torch.randint(3, 67, (3, 7))
    in_context = model(torch.cat([text.expand(3, -1), rows], dim=1), output_attentions=True).attentions
    bank = antefix.attach(model)
    prefix = token_prefix(model, text, bank.sites)
    bank.add("text", prefix)
    shares = AttentionShares(prefix)
    for part in (rows[:2], rows[2:]):
        with bank.use("text"), shares.watching(model, {"decoder": torch.ones_like(part, dtype=torch.bool)}):
            model(part)
    for site in bank.sites:
        expected = in_context[site.layer][:, :, 5:, :5].mean(dim=(0, 2))
        torch.testing.assert_close(shares.by_site()[site.path].float(), expected, atol=1e-6, rtol=0)


def test_padding_gives_no_attention() -> None:
    model = _eager("llama")
    bank = antefix.attach(model)
    bank.add("p", prefix := random_prefix(bank.sites, 4))
    rows, mask = torch.randint(3, 67, (2, 6)), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])

    def of(*parts: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        shares = AttentionShares(prefix)
        for ids, real in parts:
            with bank.use("p"), shares.watching(model, {"decoder": real == 1}):
                model(ids, attention_mask=real)
        return shares.by_site()

    padded, alone = of((rows, mask)), of((rows[:1], mask[:1]), (rows[1:, :3], mask[1:, :3]))
    for path, share in padded.items():
        torch.testing.assert_close(share, alone[path], atol=1e-6, rtol=0)


def test_every_kind_of_attention_is_watched_and_left_as_it_was() -> None:
    model = _eager("bart")
    bank = antefix.attach(model)
    bank.add("p", prefix := random_prefix(bank.sites, 3))
    read, written = torch.randint(3, 67, (2, 6)), torch.randint(3, 67, (2, 4))
    real: dict[Kind, torch.Tensor] = {
        "encoder": torch.ones(2, 6),
        "decoder": torch.ones(2, 4),
        "cross": torch.ones(2, 4),
    }
    shares = AttentionShares(prefix)
    with bank.use("p"):
        before = model(input_ids=read, decoder_input_ids=written).logits
        with shares.watching(model, real):
            watched = model(input_ids=read, decoder_input_ids=written).logits
        after = model(input_ids=read, decoder_input_ids=written).logits
    assert torch.equal(before, watched)
    assert torch.equal(before, after)
    assert {site.kind for site in prefix.sites} == {"encoder", "decoder", "cross"}
    found = shares.by_site()
    assert {path: tuple(share.shape) for path, share in found.items()} == {
        site.path: (site.num_key_value_heads, 3) for site in prefix.sites
    }
    for share in found.values():
        assert 0 < share.sum(dim=1).min() <= share.sum(dim=1).max() < 1


@pytest.mark.parametrize("watched", [True, False])
def test_nothing_is_found_without_a_forward(watched: bool) -> None:
    model = _eager("llama")
    bank = antefix.attach(model)
    shares = AttentionShares(random_prefix(bank.sites, 3))
    if watched:
        with shares.watching(model, {"decoder": torch.ones(1, 1)}):
            pass
    assert shares.by_site() == {}
