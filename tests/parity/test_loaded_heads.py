"""A loaded head is no part of the model, and yet does as the base's own module would in its place."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import antefix
from antefix.initialize import random_prefix
from tests.parity.compare import assert_close, assert_far, attach, logits
from tests.parity.families import FAMILIES

CLASSIFIER = "AutoModelForSequenceClassification"


def with_head(name: str, head: str, dropout: float = 0.5) -> tuple[PreTrainedModel, antefix.PrefixBank]:
    """Build a classifier with a prefix `trained` and a head of its own; nothing but the head drops anything."""
    model = FAMILIES[name].build(CLASSIFIER)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    for part in model.get_submodule(head).modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
    bank = attach(FAMILIES[name], model)
    bank.add("trained", antefix.PrefixConfig(5, init="random", trainable_modules=[head]))
    with torch.no_grad():
        for parameter in bank.modules("trained")[-1].parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model, bank


def seeded(model: Any, bank: antefix.PrefixBank, selection: Any) -> Tensor:
    torch.manual_seed(0)
    with bank.use(selection):
        return logits(model, **FAMILIES["RoBERTa"].draw_inputs())


@pytest.mark.parametrize("was_training", [False, True])
def test_it_drops_where_its_model_trains(was_training: bool) -> None:
    model, bank = with_head("RoBERTa", "classifier")
    model.train(was_training)
    bank.add("loaded", bank.prefix("trained"))
    model.eval()
    plain = seeded(model, bank, "trained")
    assert torch.equal(seeded(model, bank, "loaded"), plain)
    assert_close(seeded(model, bank, ["loaded", "trained"]), plain)
    model.train()
    dropped = seeded(model, bank, "trained")
    assert_far(dropped, plain)
    assert torch.equal(seeded(model, bank, "loaded"), dropped)
    model.eval()
    assert torch.equal(seeded(model, bank, "loaded"), plain)
    model.classifier.dropout.train()  # of a model that evaluates, dropout alone, as for uncertainty
    assert torch.equal(seeded(model, bank, "loaded"), dropped)
    assert torch.equal(seeded(model, bank, "trained"), plain), "a trained one is in the model, and has its own mode"


@pytest.mark.slow
def test_it_does_so_where_it_is_compiled() -> None:
    model, bank = with_head("RoBERTa", "classifier")
    model.train()
    bank.add("loaded", bank.prefix("trained"))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.eval()
    plain = seeded(model, bank, "trained")
    for _ in range(2):
        assert_close(seeded(compiled, bank, "loaded"), plain)
    model.train()
    assert_far(seeded(compiled, bank, "loaded"), plain)
    model.eval()
    assert_close(seeded(compiled, bank, "loaded"), plain)


def test_it_does_so_where_its_layer_is_checkpointed() -> None:
    """What was dropped forward is dropped again when the layer runs again in the backward."""
    model, bank = with_head("BERT", "bert.encoder.layer.1.output")
    bank.add("loaded", bank.prefix("trained"))
    made = bank.prefix("trained")
    bank.add("alone", antefix.Prefix(made.sites, made.keys, made.values))
    model.train()
    embedded = model.get_input_embeddings()(FAMILIES["BERT"].draw_inputs()["input_ids"]).detach().requires_grad_()

    def step(selection: Any) -> list[Tensor]:
        torch.manual_seed(0)
        with bank.use(selection):
            output = model(inputs_embeds=embedded).logits
            return [output, *torch.autograd.grad(output.square().sum(), [embedded])]

    trained, plain = step("trained"), step("loaded")
    model.activation_checkpointing_enable({"use_reentrant": False})
    again = step("loaded")
    for actual, unchecked, expected in zip(again, plain, trained, strict=True):
        assert torch.equal(unchecked, expected)
        assert_close(actual, expected)
    assert_far(step("alone")[1], again[1])


def test_it_goes_with_its_prefix() -> None:
    model, bank = with_head("RoBERTa", "classifier")
    bank.add("loaded", bank.prefix("trained"))
    seeded(model, bank, "loaded")
    (held,) = bank.heads("loaded").values()
    gone, held = weakref.ref(held), None
    bank.remove("loaded")
    assert gone() is None, "its memory is free at once, not when a collector comes by"


def load(bank: antefix.PrefixBank, path: Path) -> None:
    bank.load(path, name="loaded")


def add(bank: antefix.PrefixBank, path: Path) -> None:
    held = antefix.load_prefix(path)
    parts = [{name: tensor.clone() for name, tensor in part.items()} for part in (held.keys, held.values)]
    bank.add("loaded", antefix.Prefix(held.sites, *parts, held.metadata, held.modules))


@pytest.mark.parametrize("take_in", [load, add])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_was_taken_in_without_autograd_serves_a_training_step(
    take_in: Callable[[antefix.PrefixBank, Path], None], attention: str, tmp_path: Path
) -> None:
    model, bank = with_head("RoBERTa", "classifier", dropout=0.0)
    model.set_attn_implementation(attention)
    bank.save("trained", tmp_path / "p.safetensors")
    with torch.inference_mode():
        take_in(bank, tmp_path / "p.safetensors")
        before = seeded(model, bank, "loaded")
    embedded = model.get_input_embeddings()(FAMILIES["RoBERTa"].draw_inputs()["input_ids"]).detach().requires_grad_()
    with bank.use("loaded"):
        output = model(inputs_embeds=embedded).logits
        output.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().max() > 0
    assert_close(output, before)


class Normed(nn.Sequential):
    """A head that counts its batches in an integer."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(32), nn.Linear(32, 2))


def test_what_cannot_be_trained_or_saved_is_refused_before() -> None:
    model = FAMILIES["BERT"].build(CLASSIFIER)
    model.classifier = Normed().eval()
    bank = attach(FAMILIES["BERT"], model)
    for wanted, sentence in (
        ("bert.pooler.activation", r"'bert\.pooler\.activation' has no parameters to train"),
        ("classifier", r"'classifier' holds '0\.num_batches_tracked', which is no floating-point tensor"),
    ):
        with pytest.raises(antefix.ConfigError, match=sentence):
            bank.add("p", antefix.PrefixConfig(5, init="random", trainable_modules=[wanted]))
        assert bank.names == []
        assert not any("forward" in vars(module) for module in model.modules())
    bank.add("p", antefix.PrefixConfig(5, init="random", trainable_modules=["classifier.1"]))
    assert set(bank.prefix("p").modules) == {"classifier.1:weight", "classifier.1:bias"}


def test_a_loaded_one_without_parameters_is_refused() -> None:
    model = FAMILIES["BERT"].build(CLASSIFIER)
    model.bert.pooler.activation.register_buffer("scale", torch.ones(1))
    bank = attach(FAMILIES["BERT"], model)
    made = random_prefix(bank.sites, 5)
    modules = {"bert.pooler.activation:scale": torch.ones(1)}
    with pytest.raises(antefix.PrefixMismatchError, match=r"'bert\.pooler\.activation', which is no head"):
        bank.add("p", antefix.Prefix(made.sites, made.keys, made.values, {}, modules))
