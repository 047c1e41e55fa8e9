"""PyTorch's function transforms give the gradients that its autograd gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.parity.compare import assert_close, with_prefix
from tests.parity.families import FAMILIES

# Of PyTorch itself: a way of its own to import, and operators that it runs row by row.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
Parameters = Mapping[str, Tensor]
FEW = ("Llama", "BART", "T5", "StableLM")


def functional(model: PreTrainedModel) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    """Return a model's trained parameters, and its loss as a function of them and of its inputs."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Parameters, inputs: dict[str, Any]) -> Tensor:
        output = torch.func.functional_call(model, dict(parameters), (), {**inputs, "use_cache": False})[0]
        return output.square().mean()

    return trained, loss


def plain_gradients(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs, use_cache=False)[0].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(actual: Parameters, expected: Parameters) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert_close(gradient, expected[name])
        assert gradient.any()


@pytest.mark.parametrize("name", FEW)
def test_grad(name: str) -> None:
    model, _ = with_prefix(FAMILIES[name])
    inputs = FAMILIES[name].draw_inputs()
    trained, loss = functional(model)
    assert_equal(torch.func.grad(loss)(trained, inputs), plain_gradients(model, inputs))


@pytest.mark.parametrize("name", FEW)
def test_gradients_of_each_row(name: str) -> None:
    model, _ = with_prefix(FAMILIES[name])
    inputs = FAMILIES[name].draw_inputs(batch=3)
    trained, loss = functional(model)
    rows = {key: value[:, None] for key, value in inputs.items()}
    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(trained, rows)
    for number in range(3):
        row = {key: value[number : number + 1] for key, value in inputs.items()}
        assert_equal({key: value[number] for key, value in actual.items()}, plain_gradients(model, row))


def test_derivatives_along_a_direction() -> None:
    """Forward-mode derivatives need attention that has them, which PyTorch's fused kernels do not."""
    model, _ = with_prefix(FAMILIES["Llama"], attn_implementation="eager")
    inputs = FAMILIES["Llama"].draw_inputs()
    trained, loss = functional(model)
    direction = {name: torch.randn_like(value) for name, value in trained.items()}
    _, along = torch.func.jvp(lambda parameters: loss(parameters, inputs), (trained,), (direction,))
    gradients = plain_gradients(model, inputs)
    assert_close(along, sum((gradients[name] * direction[name]).sum() for name in trained))  # type: ignore[arg-type]


def test_the_reason_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = with_prefix(FAMILIES["Llama"])
    trained, loss = functional(model)
    with caplog.at_level(logging.DEBUG, logger="antefix.attention.backend"):
        torch.func.grad(loss)(trained, FAMILIES["Llama"].draw_inputs())
    assert caplog.messages
    assert all("because torch.func transforms the model" in message for message in caplog.messages)
