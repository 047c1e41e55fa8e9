"""On a GPU the shared operator equals softmax written out in float64, forward and backward, by each of its kernels."""

from __future__ import annotations

import pytest
import torch

from antefix.attention import shared
from antefix.attention.check import HeadShape, computes_right
from tests.parity.written_out import (
    DIMS,
    HEADS,
    KINDS,
    LENGTHS,
    ROWS,
    SCALE,
    TOLERANCE,
    assert_operator_equals,
    draw_case,
)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_softmax_written_out(
    dtype: torch.dtype, length: int, kind: str, dims: tuple[int, int], rows: list[int]
) -> None:
    assert_operator_equals(dtype, length, kind, dims, rows, "cuda")


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_kernels_are_trusted(dtype: torch.dtype, is_masked: bool, heads: HeadShape) -> None:
    assert computes_right("operator", torch.device("cuda", 0), dtype, heads, is_masked)


def test_the_operator_is_well_behaved() -> None:
    (query, key, value), prefixes = draw_case(key_dim=16, value_dim=16)
    query, key, value = (part.detach().to("cuda", torch.bfloat16).requires_grad_() for part in (query, key, value))
    keys, values = (
        [pair[part].detach().to("cuda", torch.bfloat16).requires_grad_() for pair in prefixes] for part in (0, 1)
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for rows in ([0, 0, 0], [1, -1, 0]):
        inputs = (query, key, value, keys, values, rows, None, True, SCALE)
        torch.library.opcheck(shared._operator, inputs, test_utils=checks)
