"""Gradients of a prefix do not depend on how the forward is run, and only the prefix is trained."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from transformers import DynamicCache, PreTrainedModel

import antefix
from tests.parity.compare import assert_close, attach, with_prefix
from tests.parity.conftest import over
from tests.parity.families import FAMILIES, Family, draw_ids


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout to zero: a second run would draw other numbers."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def loss(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Return a loss that any model has, a sum over rows; squares alone add up to a constant after a last norm."""
    output: Tensor = model(**inputs)[0]
    return (output.float().square() * torch.linspace(0, 1, output.shape[-1])).sum() / 1000


def gradients(model: PreTrainedModel) -> list[Tensor]:
    found = [p.grad.clone() for p in model.antefix_prefixes.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_checkpointing(family: Family) -> None:
    """Layers that run again in the backward see the prefix that they saw in the forward, although another was used."""
    model, bank = with_prefix(family)
    bank.add("q", antefix.PrefixConfig(4, init="random"))
    without_dropout(model).train()
    inputs, others = family.draw_inputs(), family.draw_inputs(seed=3)

    def both() -> list[Tensor]:
        with bank.use("p"):
            first = loss(model, inputs)
        with bank.use("q"):
            second = loss(model, others)
        (first + second).backward()
        return [first.detach(), second.detach(), *gradients(model)]

    expected = both()
    model.activation_checkpointing_enable({"use_reentrant": False})
    for actual, plain in zip(both(), expected, strict=True):
        assert plain.abs().max() > 0
        assert_close(actual, plain)


@pytest.mark.parametrize(
    ("name", "module"), [("Llama", "layers.1.mlp"), ("StableLM", "layers.1.mlp"), ("BERT", "layer.1.output")]
)
def test_checkpointing_of_layers_with_modules_of_their_own(name: str, module: str) -> None:
    """They run again with the modules that they ran with, in another thread and while another prefix is in use."""
    family = FAMILIES[name]
    model = without_dropout(family.build())
    bank = attach(family, model)
    for prefix in ("a", "b"):
        bank.add(prefix, antefix.PrefixConfig(4, init="random", trainable_modules=[module]))
        with torch.no_grad():
            for parameter in bank.modules(prefix)[-1].parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.train()

    def interleaved() -> list[Tensor]:
        losses = []
        for seed, choice in enumerate(("a", ["b", "a"], [None, "b"], "b")):
            with bank.use(choice):
                losses.append(loss(model, family.draw_inputs(seed=seed)))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.stack(losses).sum().backward).result()
        return [*torch.stack(losses).detach(), *gradients(model)]

    expected = interleaved()
    model.activation_checkpointing_enable({"use_reentrant": False})
    checkpoints = {id(part): vars(part).get("_gradient_checkpointing_func") for part in model.modules()}
    actual = interleaved()
    assert len(actual) == len(expected) == 4 + len(list(model.antefix_prefixes.parameters()))
    for one, plain in zip(actual, expected, strict=True):
        assert plain.abs().max() > 0
        assert_close(one, plain)
    bank.detach()
    assert all(vars(part).get("_gradient_checkpointing_func") is checkpoints[id(part)] for part in model.modules())
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("name", ["Llama", "StableLM"])
def test_layers_that_pytorch_checkpoints(name: str) -> None:
    """As FSDP wants them, wrapped one by one; they run again in another thread and while another prefix is in use."""
    model, bank = with_prefix(FAMILIES[name])
    bank.add("q", antefix.PrefixConfig(4, init="random"))
    without_dropout(model).train()

    def both() -> list[Tensor]:
        losses = []
        for prefix in ("p", "q"):
            with bank.use(prefix):
                losses.append(loss(model, FAMILIES[name].draw_inputs()))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.stack(losses).sum().backward).result()
        return gradients(model)

    expected = both()
    layers = list(model.model.layers)
    apply_activation_checkpointing(model, check_fn=lambda module: module in layers)
    wrappers = [module for module in model.modules() if isinstance(module, CheckpointWrapper)]
    functions = [wrapper.checkpoint_fn for wrapper in wrappers]
    assert len(wrappers) == len(layers)
    for actual, plain in zip(both(), expected, strict=True):
        assert plain.abs().max() > 0
        assert_close(actual, plain)
    bank.detach()
    assert [wrapper.checkpoint_fn for wrapper in wrappers] == functions


def test_a_checkpointed_layer_is_trained_whole_after_a_part_of_it() -> None:
    """The layer is copied as it is, although it remembers by now what it ran under."""
    family = FAMILIES["LFM2"]
    model = without_dropout(family.build()).train()
    bank = attach(family, model)
    bank.add("part", antefix.PrefixConfig(4, init="random", trainable_modules=["layers.0.feed_forward"]))
    model.activation_checkpointing_enable({"use_reentrant": False})
    loss(model, family.draw_inputs()).backward()
    expected = gradients(model)
    bank.add("layer", antefix.PrefixConfig(4, init="random", trainable_modules=["layers.0"]))
    loss(model, family.draw_inputs()).backward()
    assert all(parameter.grad is not None for parameter in bank.modules("layer")[-1].parameters())
    model.zero_grad(set_to_none=True)
    with bank.use("part"):
        loss(model, family.draw_inputs()).backward()
    for actual, before in zip(gradients(model), expected, strict=True):
        assert_close(actual, before)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_accumulation(family: Family) -> None:
    """The gradients of two halves of a batch add up to those of the whole."""
    model, _ = with_prefix(family)
    inputs = family.draw_inputs()
    loss(model, inputs).backward()
    expected = gradients(model)
    for row in range(2):
        loss(model, {name: value[row : row + 1] for name, value in inputs.items()}).backward()
    for actual, whole in zip(gradients(model), expected, strict=True):
        assert_close(actual, whole)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision", "vision-language")
def test_frozen_base(family: Family) -> None:
    """An optimiser finds the prefix and nothing else; the base gets no gradient and does not move."""
    model, bank = with_prefix(family)
    base = {name: p for name, p in model.named_parameters() if not name.startswith("antefix_prefixes.")}
    before, prefix = {name: p.detach().clone() for name, p in base.items()}, bank.prefix("p")
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in model.antefix_prefixes.parameters()}
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.1)
    loss(model, family.draw_inputs()).backward()
    optimizer.step()
    assert all(p.grad is None for p in base.values())
    assert all(torch.equal(p, before[name]) for name, p in base.items())
    assert sum(len(state) for state in optimizer.state.values()) == 3 * len(trainable)
    moved = bank.prefix("p")
    assert all(not torch.equal(moved.keys[path], prefix.keys[path]) for path in prefix.keys)


@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_dropout(family: Family) -> None:
    """With the base's dropout on, runs of one seed are equal and others are not, and gradients are finite."""
    model, _ = with_prefix(family)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.2)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    model.train()
    inputs, found = family.draw_inputs(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        value = loss(model, inputs)
        value.backward()
        found.append([value.detach(), *gradients(model)])
    assert all(torch.equal(x, y) for x, y in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found[0][1:])


@over("decoder", "encoder", "encoder-decoder", "speech", "vision")
def test_autocast(family: Family) -> None:
    """Under autocast an fp32 prefix gets fp32 gradients that point where they should."""
    model, _ = with_prefix(family, scale=1.0)
    inputs = family.draw_inputs()
    loss(model, inputs).backward()
    expected = torch.cat([g.flatten() for g in gradients(model)])
    with torch.autocast("cpu", torch.bfloat16):
        loss(model, inputs).backward()
    cast = gradients(model)
    assert all(gradient.dtype == torch.float32 for gradient in cast)
    agree = torch.nn.functional.cosine_similarity(torch.cat([g.flatten() for g in cast]), expected, dim=0)
    assert agree > 0.9  # bf16 keeps 8 bits of each number in each layer


@pytest.mark.parametrize("reparameterization", [None, "mlp"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["Llama", "T5", "StableLM"])
def test_two_interleaved_forwards_equal_separate_ones(name: str, checkpointing: bool, reparameterization: Any) -> None:
    family = FAMILIES[name]
    model, bank = with_prefix(family)
    for prefix, tokens in (("a", 4), ("b", 6)):
        config = antefix.PrefixConfig(
            tokens, init="random", reparameterization=reparameterization, encoder_hidden_size=16
        )
        bank.add(prefix, config)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    without_dropout(model).train()

    def forward(prefix: str, seed: int) -> Tensor:
        with bank.use(prefix):
            return loss(model, family.draw_inputs(seed=seed))

    forward("a", 1).backward()
    forward("b", 2).backward()
    expected = gradients(model)
    (forward("a", 1) + forward("b", 2)).backward()
    actual = gradients(model)
    assert len(expected) == len(actual) >= 2
    for x, y in zip(actual, expected, strict=True):
        assert_close(x, y)


def test_gradients_equal_those_through_a_cache() -> None:
    family = FAMILIES["Llama"]
    model, bank = with_prefix(family)
    inputs = family.draw_inputs(length=6)
    loss(model, inputs).backward()
    expected = gradients(model)
    bank.deactivate()
    (encoder,) = model.antefix_prefixes
    cache = DynamicCache()
    for site in bank.sites:
        key, value = encoder.keys_and_values()[site.path]
        cache.update(key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1), site.layer)
    mask = torch.ones(2, 11, dtype=torch.long)
    loss(model, inputs | {"past_key_values": cache, "attention_mask": mask}).backward()
    for actual, through_cache in zip(gradients(model), expected, strict=True):
        assert_close(actual, through_cache)


@pytest.mark.parametrize("name", ["Llama", "StableLM"])
def test_reentrant_checkpointing_is_refused(name: str) -> None:
    model, bank = with_prefix(FAMILIES[name])
    model.train()
    inputs = FAMILIES[name].draw_inputs()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with bank.use(None):
        model(**inputs)
    with pytest.raises(antefix.UnsupportedModelError, match="use_reentrant"):
        model(**inputs)
    bank.add("frozen", bank.prefix("p"))
    model.enable_input_require_grads()
    with bank.use("frozen"):
        loss(model, inputs).backward()


def test_reentrant_is_what_pytorch_does_if_it_is_not_told() -> None:
    """Beside a head that trains, the loss would have gradients, and the prefix none."""
    family = FAMILIES["ViT"]
    model, bank = with_prefix(family)
    bank.add("h", antefix.PrefixConfig(4, init="random", trainable_modules=["classifier"]))
    model.train().activation_checkpointing_enable({"preserve_rng_state": False})
    with pytest.raises(antefix.UnsupportedModelError, match="use_reentrant"):
        model(**family.draw_inputs())


def test_reentrant_layers_that_pytorch_wraps_are_refused() -> None:
    model, _ = with_prefix(FAMILIES["Llama"])
    layers = list(model.train().model.layers)
    wrap = functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT)
    apply_activation_checkpointing(model, checkpoint_wrapper_fn=wrap, check_fn=lambda module: module in layers)
    with pytest.raises(antefix.UnsupportedModelError, match="use_reentrant"):
        model(**FAMILIES["Llama"].draw_inputs())


def test_a_frozen_first_token_of_a_text_stays() -> None:
    from transformers import AutoTokenizer

    from antefix.embedded import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = FAMILIES["Llama"].build()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(6, num_frozen_tokens=1), tokenizer=tokenizer)
    before = bank.prefix("p")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    ids = draw_ids(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    after = bank.prefix("p")
    for path in before.keys:
        assert torch.equal(before.keys[path][:, 0], after.keys[path][:, 0])
        assert not torch.equal(before.keys[path][:, 1:], after.keys[path][:, 1:])
