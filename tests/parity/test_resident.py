"""Keys and values are made once for a step or a cache, brought over once, and never stale."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import antefix
from antefix.initialize import random_prefix
from antefix.sites import Site
from tests.parity.compare import assert_close, assert_far, logits, with_prefix
from tests.parity.families import FAMILIES, draw_ids

MLP: dict[str, Any] = {"init": "random", "reparameterization": "mlp", "encoder_hidden_size": 16}


def with_network(name: str) -> tuple[PreTrainedModel, antefix.PrefixBank, list[int]]:
    """Build a model with a prefix `mlp` in use, and a list that grows by one whenever an encoder's network runs."""
    model, bank = with_prefix(FAMILIES[name])
    bank.remove("p")
    bank.add("mlp", antefix.PrefixConfig(5, **MLP))
    runs: list[int] = []
    for encoder in model.antefix_prefixes:
        encoder.transform.register_forward_hook(lambda *_: runs.append(1))
    return model, bank, runs


@pytest.mark.parametrize(("name", "kinds"), [("Llama", 1), ("T5", 3)])
def test_the_network_runs_once_a_step(name: str, kinds: int) -> None:
    model, bank, runs = with_network(name)
    model(**FAMILIES[name].draw_inputs(batch=6))[0].sum().backward()
    assert len(runs) == kinds
    with bank.use(["mlp", None, "mlp"]):
        model(**FAMILIES[name].draw_inputs(batch=6))
    assert len(runs) == 2 * kinds


@pytest.mark.parametrize(("name", "kinds"), [("Llama", 1), ("T5", 3)])
def test_the_network_runs_once_an_answer_and_is_never_stale(name: str, kinds: int) -> None:
    model, bank, runs = with_network(name)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "output_logits": True}
    ids = draw_ids(2, 6)

    def answer() -> Tensor:
        made = model.generate(input_ids=ids, **settings, return_dict_in_generate=True, disable_compile=True)
        return torch.stack(made.logits)

    before = answer()
    assert len(runs) == kinds
    for parameter in model.antefix_prefixes.parameters():
        parameter.data.mul_(2.0)  # past the counter by which PyTorch tells that a tensor was changed
    after = answer()
    assert len(runs) == 2 * kinds
    assert_far(after, before)
    bank.add("frozen", bank.prefix("mlp"))
    bank.activate("frozen")
    assert_close(answer(), after)


@dataclass
class Constant:
    """A `PrefixSource` that is equal to others and has no hash, as dataclasses are."""

    sites: Sequence[Site]
    number: float
    training: bool = False

    def keys_and_values(self, dropout: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
        return {
            site.path: (
                torch.full((site.num_key_value_heads, 3, site.key_dim), self.number),
                torch.full((site.num_key_value_heads, 3, site.value_dim), self.number),
            )
            for site in self.sites
        }


def test_a_source_is_known_by_what_it_is() -> None:
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    for number in (1.0, 2.0):
        bank.add(f"made {number}", Constant(bank.sites, number))
        bank.add(f"kept {number}", bank.prefix(f"made {number}"))
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    ids = draw_ids(2, 6)

    def answer(*names: str) -> Tensor:
        with bank.use(names):
            return torch.stack(model.generate(input_ids=ids, **settings, disable_compile=True).logits)

    assert_close(answer("made 1.0", "made 2.0"), answer("kept 1.0", "kept 2.0"))
    sources: Any = [Constant(bank.sites, 1.0), Constant(bank.sites, 1.0)]
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), bank.use(None):
        model(input_ids=ids, past_key_values=cache)
        pairs = [bank._resident.made(source, cache) for source in sources]
        assert pairs[0] is not pairs[1]
        del sources[0]
        fresh = Constant(bank.sites, 5.0)
        assert all((key == 5.0).all() for key, _ in bank._resident.made(fresh, cache).values())


def test_a_cache_that_begins_anew_gets_the_prefix_as_it_is_then() -> None:
    model, bank = with_prefix(FAMILIES["Llama"])
    cache, ids = DynamicCache(config=model.config), draw_ids(2, 6)
    first = logits(model, input_ids=ids, past_key_values=cache)
    cache.crop(-6)
    for parameter in model.antefix_prefixes.parameters():
        parameter.data.mul_(2.0)
    again = logits(model, input_ids=ids, past_key_values=cache)
    assert_far(again, first)
    assert_close(again, logits(model, input_ids=ids))
    bank.remove("p")
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    cache.crop(-3)
    fresh = copy.deepcopy(cache)
    continued = logits(model, input_ids=ids[:, 3:], past_key_values=cache)
    assert torch.equal(continued, logits(model, input_ids=ids[:, 3:], past_key_values=fresh))


def test_dropout_is_off_where_the_model_evaluates() -> None:
    model, bank = with_prefix(FAMILIES["Llama"])
    bank.add("dropped", antefix.PrefixConfig(5, init="random", dropout=0.5))
    ids = draw_ids(2, 6)
    assert torch.equal(logits(model, input_ids=ids), logits(model, input_ids=ids))
    model.train()
    assert not torch.equal(logits(model, input_ids=ids), logits(model, input_ids=ids))


def test_a_frozen_prefix_is_brought_over_once() -> None:
    model = FAMILIES["Llama"].build().to(torch.bfloat16)
    bank = antefix.attach(model)
    prefix = random_prefix(bank.sites, 5)
    bank.add("p", prefix)
    held: Any = bank._get("p").data
    ids = draw_ids(2, 6)
    with bank.use("p"):
        first = logits(model, input_ids=ids)
        there = dict(bank._resident.frozen("p", held)._converted)
        again = logits(model, input_ids=ids)
    assert torch.equal(first, again)
    brought = bank._resident.frozen("p", held)._converted
    assert brought.keys() == there.keys()
    assert {path for path, *_ in brought} == prefix.keys.keys()
    for place, pair in brought.items():
        assert all(part.dtype == torch.bfloat16 for part in pair)
        assert all(part is known for part, known in zip(pair, there[place], strict=True))
    for path, key in prefix.keys.items():
        assert torch.equal(bank.prefix("p").keys[path], key), "what was loaded is what is saved"
    with torch.inference_mode(), bank.use("p"):
        model(input_ids=ids)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with bank.use("p"):
        model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None


def test_another_dtype_rounds_nothing_for_good() -> None:
    model = FAMILIES["GPT-2"].build()
    bank = antefix.attach(model)
    prefix = random_prefix(bank.sites, 5)
    bank.add("p", prefix)
    ids = draw_ids(2, 6)
    with bank.use("p"):
        before = logits(model, input_ids=ids)
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(logits(model, input_ids=ids), before)
        assert torch.equal(logits(model, input_ids=ids), before)
        logits(model.to(torch.bfloat16), input_ids=ids)
        after = logits(model.float(), input_ids=ids)
    bank.add("anew", prefix)
    with bank.use("anew"):
        assert torch.equal(logits(model, input_ids=ids), after)


def test_keys_and_values_may_be_of_different_dtypes() -> None:
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    made = random_prefix(bank.sites, 5)
    exact = {path: value.double() for path, value in made.values.items()}
    bank.add("exact", antefix.Prefix(made.sites, made.keys, exact))
    bank.add("plain", made)
    ids = draw_ids(2, 6)
    with bank.use(["exact", "plain"]):
        mixed = logits(model, input_ids=ids)
    with bank.use("plain"):
        assert_close(mixed, logits(model, input_ids=ids))


def test_the_least_recently_used_prefix_goes_and_comes_again() -> None:
    model = FAMILIES["Llama"].build().to(torch.float64)
    bank = antefix.attach(model, max_resident_prefixes=2)
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        bank.add(name, random_prefix(bank.sites, 3 + number))
    ids = draw_ids(3, 6)

    def run(selection: Any) -> Tensor:
        with bank.use(selection):
            return logits(model, input_ids=ids)

    alone = {name: run(name) for name in names}
    assert list(bank._resident._by_name) == ["b", "c"]
    run("b"), run("a")
    assert list(bank._resident._by_name) == ["b", "a"]
    assert torch.equal(run("c"), alone["c"])
    mixed = run(names)
    for row, name in enumerate(names):
        assert_close(mixed[row], alone[name][row])
    assert len(bank._resident._by_name) == 2
    bank.remove("c")
    bank.add("c", random_prefix(bank.sites, 9))
    assert_far(run("c"), alone["c"])
    with pytest.raises(antefix.ConfigError, match="max_resident_prefixes is 0; it must be 1 or more"):
        antefix.attach(FAMILIES["Llama"].build(), max_resident_prefixes=0)
