"""What the parity tests share: attaching to a family's model, reading its logits, and saying how near is equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import antefix
from tests.parity.families import Family

# fp32 sums in another order: about 1e-5 of the largest logit is rounding, a wrong position or mask is off by more than
# 1e-3 of it.
TOLERANCE = 5e-5


def attach(family: Family, model: PreTrainedModel) -> antefix.PrefixBank:
    """Attach as a user would, with one batch where the model reads more than token ids."""
    return antefix.attach(model, example_inputs=family.inputs() if family.inputs else None)


def with_prefix(family: Family, **settings: Any) -> tuple[PreTrainedModel, antefix.PrefixBank]:
    """Build a family's model with a random prefix `p` of 5 tokens in use."""
    model = family.build(**settings)
    bank = attach(family, model)
    bank.add("p", antefix.PrefixConfig(5, init="random"))
    return model, bank


def logits(model: Any, **inputs: Any) -> Tensor:
    """Return the first output without gradients: logits, or the last hidden state of a model without a head."""
    with torch.no_grad():
        return model(**inputs)[0]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Require equality up to rounding, in proportion to the largest number expected."""
    actual, expected = actual.detach(), expected.detach()
    torch.testing.assert_close(actual, expected, atol=tolerance * float(expected.abs().max()), rtol=0.0)


def assert_far(actual: Tensor, expected: Tensor) -> None:
    """Require a difference that rounding cannot make: what is compared must not be equal for no reason."""
    assert (actual - expected).abs().max() > 1e-3 * expected.abs().max()
