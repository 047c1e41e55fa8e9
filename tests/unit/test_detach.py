"""Detaching gives the base model back bit for bit; a model that is attached is not copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import antefix
from tests.conftest import build_model, run
from tests.parity.families import FAMILIES


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_detach_gives_the_base_back_bit_for_bit(name: str) -> None:
    model = build_model(name)
    state, config, output = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config.to_dict()), run(model)
    configs = {path: getattr(module, "config", None) for path, module in model.named_modules()}
    grads = {path: parameter.requires_grad for path, parameter in model.named_parameters()}
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    assert not torch.equal(run(model), output)
    with bank.use(None):
        assert torch.equal(run(model), output)
    bank.detach()
    assert torch.equal(run(model), output)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    assert model.config.to_dict() == config
    assert all(getattr(model.get_submodule(path), "config", None) is own for path, own in configs.items())
    assert {path: parameter.requires_grad for path, parameter in model.named_parameters()} == grads
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    antefix.attach(model).detach()


def test_an_attention_modules_config_is_written_as_the_bases() -> None:
    model = build_model("llama")
    written, printed = model.config.to_json_string(), repr(model.config)
    bank = antefix.attach(model)
    configs = [model.get_submodule(site.path).config for site in bank.sites]
    assert all(config is not model.config for config in configs)
    assert all(config.to_json_string() == written and repr(config) == printed for config in configs)


def test_a_detached_bank_says_so_and_harms_no_other() -> None:
    model = build_model("llama")
    old = antefix.attach(model)
    with pytest.raises(antefix.ConfigError, match="has a bank already"):
        antefix.attach(model.model)
    old.detach()
    new = antefix.attach(model)
    new.add("p", antefix.PrefixConfig(4, init="random"))
    old.detach()
    assert len(model.antefix_prefixes) == 1
    with pytest.raises(antefix.ConfigError, match="detached"):
        old.add("q", antefix.PrefixConfig(4, init="random"))
    with pytest.raises(antefix.ConfigError, match="detached"), old.use(None):
        pass


def test_removing_from_a_detached_bank_leaves_the_model_alone() -> None:
    model = build_model("llama")
    state = list(model.state_dict())
    old = antefix.attach(model)
    for name in ("p", "q", "r"):
        old.add(name, antefix.PrefixConfig(4, init="random"))
    old.detach()
    old.remove("p")
    assert list(model.state_dict()) == state
    new = antefix.attach(model)
    new.add("p", antefix.PrefixConfig(4, init="random"))
    held = list(model.state_dict())
    old.remove("q")
    assert list(model.state_dict()) == held
    assert old.names == ["r"]


@pytest.mark.parametrize("build", [lambda: build_model("llama"), FAMILIES["Gemma 3 multimodal"].build])
def test_a_model_is_not_copied_with_its_bank(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    expected = run(model)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(4, init="random"))
    for make in (copy.deepcopy, pickle.dumps):
        with pytest.raises(antefix.UnsupportedModelError, match="cannot be copied or pickled"):
            make(model)
    bank.detach()
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), expected)  # noqa: S301 - written one line above
