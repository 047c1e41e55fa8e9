"""On a GPU a model with a prefix computes what it computes on a CPU, whatever it is asked to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import antefix
from antefix.attention import backend, choice
from antefix.attention.decoding import decode
from antefix.initialize import random_prefix
from tests.parity.compare import assert_close, attach, logits, with_prefix
from tests.parity.families import FAMILIES, Family, draw_ids

TOLERANCE = 1e-3  # of the largest number: a GPU's fp32 products and functions round otherwise than a CPU's
HALF = 0.1  # bf16 keeps 8 bits, over layers of weights three times as large as usual


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note what the kernel for one query a row returns."""
    found: list[Tensor] = []

    def spy(*args: Any) -> Tensor:
        found.append(decode(*args))
        return found[-1]

    monkeypatch.setattr(choice, "decode", spy)
    return found


@pytest.fixture
def shares(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Require that no prefix is copied for a row."""
    with caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
        yield
    assert not caplog.messages


def on_gpu(inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {name: part.to("cuda", dtype if part.is_floating_point() else part.dtype) for name, part in inputs.items()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_logits(family: Family) -> None:
    """One prefix, a mixed batch and none, in fp32; one prefix in bf16."""
    model, bank = with_prefix(family)
    bank.add("longer", antefix.PrefixConfig(8, init="random"))
    inputs = family.draw_inputs()
    selections: list[Any] = ["p", None]
    if family.group != "vision-language":
        selections += [["longer", "p"], [None, "p"]]
    expected = {}
    for selection in selections:
        with bank.use(selection):
            expected[str(selection)] = logits(model, **inputs)
    model.to("cuda")
    for selection in selections:
        with bank.use(selection):
            assert_close(logits(model, **on_gpu(inputs)).cpu(), expected[str(selection)], TOLERANCE)
    fixed = bank.prefix("p")
    half = family.build().to("cuda", torch.bfloat16)
    halves = on_gpu(inputs, torch.bfloat16)
    half_bank = antefix.attach(half, example_inputs=halves if family.inputs else None)
    half_bank.add("p", fixed)
    with half_bank.use("p"):
        actual = logits(half, **halves).float().cpu()
    lost = (actual - expected["p"]).norm()
    assert lost < 0.25 * (expected["None"] - expected["p"]).norm()  # what the prefix does stands out from rounding


@pytest.mark.parametrize("family", ["Llama", "BART", "BERT", "Gemma"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("length", [11, 32])
def test_gradients(family: str, padded: bool, checkpointing: bool, length: int, shares: None) -> None:
    """Padding on the right, as a collator leaves it, and recomputed activations change no gradient."""
    model, _ = with_prefix(FAMILIES[family])
    inputs = FAMILIES[family].draw_inputs(length=length)
    if padded:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, 6:] = 0
    expected = gradients(model, inputs)
    model.to("cuda")
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    for found, gradient in zip(gradients(model, on_gpu(inputs)), expected, strict=True):
        assert_close(found.cpu(), gradient, TOLERANCE)


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.train()  # these models drop nothing but what their configurations say, and checkpointing wants it
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    output = model(**inputs)[0]
    weights = torch.linspace(0, 1, output.shape[-1], device=output.device)
    seen = inputs.get("attention_mask") if output.shape[1] == inputs["input_ids"].shape[1] else None
    parts = output.square() * weights
    loss = parts.mean() if seen is None else (parts * seen[..., None]).mean()
    return list(torch.autograd.grad(loss, list(model.antefix_prefixes.parameters())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_of_padded_rows(dtype: torch.dtype, cache: str, shares: None, decoded: list[Tensor]) -> None:
    """Rows of their own prefixes, padded on the left, are continued as each is alone, without padding."""
    model = FAMILIES["Llama"].build(scale=1.0 if dtype == torch.bfloat16 else 3.0).to("cuda", dtype)
    bank = antefix.attach(model)
    for number in range(3):
        bank.add(f"p{number}", random_prefix(bank.sites, 4 + number))
    ids, names, padding = draw_ids(4, 7).cuda(), ["p0", None, "p1", "p2"], [3, 0, 1, 0]
    mask = torch.ones_like(ids)
    for row, number in enumerate(padding):
        mask[row, :number] = ids[row, :number] = 0
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True,
                "output_logits": True, "cache_implementation": cache, "disable_compile": True}  # fmt: skip
    with bank.use(names):
        mixed = model.generate(ids, attention_mask=mask, **settings)
    assert len(decoded) == 5 * len(bank.sites)
    for row, name in enumerate(names):
        own = ids[row : row + 1, padding[row] :]
        with bank.use(name):
            alone = model.generate(own, attention_mask=torch.ones_like(own), **settings)
        answers = mixed.sequences[row, 7:].tolist(), alone.sequences[0, own.shape[1] :].tolist()
        assert dtype != torch.float32 or answers[0] == answers[1]
        tolerance = TOLERANCE if dtype == torch.float32 else HALF
        for step, (together, single) in enumerate(zip(mixed.logits, alone.logits, strict=True)):
            if answers[0][:step] == answers[1][:step]:  # in bf16 a draw between two tokens may go either way
                assert_close(together[row].float(), single[0].float(), tolerance)


def test_prefixes_stay_on_the_cpu(shares: None) -> None:
    """Few are on the GPU at a time, and what they do does not depend on which."""
    model = FAMILIES["Llama"].build(scale=1.0).to("cuda", torch.bfloat16)
    bank = antefix.attach(model, max_resident_prefixes=2)
    for number in range(5):
        bank.add(f"p{number}", random_prefix(bank.sites, 4 + number))
    ids, names = draw_ids(6, 7).cuda(), ["p0", None, "p1", "p2", "p3", "p4"]
    with bank.use(names):
        mixed = logits(model, input_ids=ids)
    for row, name in enumerate(names):
        with bank.use(name):
            assert_close(mixed[row].float(), logits(model, input_ids=ids[row : row + 1])[0].float(), HALF)


def test_reasons_to_copy(caplog: pytest.LogCaptureFixture) -> None:
    """Double precision has no kernel on a GPU; the prefix is copied, and the log says why."""
    model, _ = with_prefix(FAMILIES["Llama"])
    inputs = FAMILIES["Llama"].draw_inputs()
    expected = logits(model.double(), **inputs)
    with caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
        assert_close(logits(model.to("cuda"), **on_gpu(inputs)).cpu(), expected, 1e-6)  # rotations are in fp32
    assert any("the kernels of a GPU take fp32, bf16 and fp16" in message for message in caplog.messages)


@pytest.mark.parametrize("name", ["Llama", "gpt-oss"])
def test_flex_attention(name: str) -> None:
    """The base's sinks, which its flex attention wants a GPU for, stand beside a prefix."""
    family = FAMILIES[name]
    family = replace(family, settings={**family.settings, "head_dim": 16})  # the least that its kernel takes
    model = family.build().to("cuda")
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    inputs = on_gpu(family.draw_inputs())
    model.set_attn_implementation("eager")
    expected = logits(model, **inputs)
    model.set_attn_implementation("flex_attention")
    assert_close(logits(model, **inputs), expected, TOLERANCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's code gives what the eager model gives, forward and backward, in one graph that joins nothing."""
    monkeypatch.setattr(backend, "concatenate", None)
    family = FAMILIES["Llama"]
    model = family.build(scale=1.0).to("cuda", dtype)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    ids = draw_ids(2, 7).cuda()
    parameters = list(model.antefix_prefixes.parameters())

    def run(called: Any) -> list[Tensor]:
        output = called(input_ids=ids, use_cache=False)[0].float()
        return [output, *torch.autograd.grad(output.square().mean(), parameters)]

    expected = run(model)  # in this order: a graph trusts the kernels that have been found right
    for actual, eager in zip(run(torch.compile(model, fullgraph=True)), expected, strict=True):
        assert_close(actual, eager, TOLERANCE if dtype == torch.float32 else HALF)
