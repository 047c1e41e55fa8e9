"""What antefix asks of a GPU's kernels comes to softmax written out; the kernels are read on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import antefix
from antefix.attention import kernels
from antefix.attention.check import HeadShape, computes_right
from antefix.initialize import random_prefix
from tests.parity.compare import assert_close, with_prefix
from tests.parity.families import FAMILIES, draw_ids
from tests.parity.gpu_kernels import gpu_kernels
from tests.parity.written_out import HEADS, KINDS, LENGTHS, ROWS, TOLERANCE, assert_operator_equals

FLASH, EFFICIENT = (
    {f"{name}_attention", f"{name}_attention_backward"} for name in ("flash", "efficient")
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compute as on a GPU, and note which of its kernels are called."""
    with gpu_kernels() as names:
        monkeypatch.setattr(kernels, "is_on_gpu", lambda tensor: True)
        yield names


@pytest.mark.parametrize("dims", [(8, 8), (6, 10), (72, 40)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_softmax_written_out(
    dtype: torch.dtype, length: int, kind: str, dims: tuple[int, int], calls: list[str]
) -> None:
    """Flash attention takes half precision without a mask, so every prefix; fp32 and masks are for the other kernel."""
    for rows in ROWS:
        assert_operator_equals(dtype, length, kind, dims, rows, "cpu")
    is_half = dtype != torch.float32
    assert set(calls) == (FLASH if is_half else set()) | (EFFICIENT if not is_half or "masked" in kind else set())


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_kernels_are_trusted(is_masked: bool, heads: HeadShape, calls: list[str]) -> None:
    for dtype in TOLERANCE:
        assert computes_right("operator", torch.device("cpu"), dtype, heads, is_masked)
    assert set(calls) == FLASH | EFFICIENT


@pytest.mark.parametrize("family", ["Llama", "BART", "BERT", "Gemma"])
@pytest.mark.parametrize("padded", [False, True])
def test_training(family: str, padded: bool, calls: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The base's own function, over a copy of the prefix for each row, has the same output and gradients."""
    model, bank = with_prefix(FAMILIES[family])
    bank.add("other", antefix.PrefixConfig(3, init="random"))
    inputs = FAMILIES[family].draw_inputs()
    if padded:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][0, 6:] = 0
    parameters = list(model.antefix_prefixes.parameters())

    def run() -> list[Any]:
        output = model(**inputs)[0]
        loss = output[-1].square().mean() + output[0, :6].square().mean()
        return [loss, *torch.autograd.grad(loss, parameters)]

    with bank.use(["p", "other"]):
        with caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
            shared = run()
        assert set(calls) == EFFICIENT
        assert not caplog.messages
        calls.clear()
        model.set_attn_implementation("eager")
        for actual, expected in zip(shared, run(), strict=True):
            assert_close(actual, expected)
    assert not calls


def test_generation(calls: list[str]) -> None:
    """Two prefixes of one length, for two rows each, lie side by side while a cache fills."""
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    for name in ("p", "other"):
        bank.add(name, random_prefix(bank.sites, 5))
    ids = draw_ids(4, 7)
    settings = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with bank.use(["p", "other", "other", "p"]):
        shared = torch.stack(model.generate(ids, **settings).logits)
        assert set(calls) == {"efficient_attention"}
        model.set_attn_implementation("eager")
        assert_close(shared, torch.stack(model.generate(ids, **settings).logits))
