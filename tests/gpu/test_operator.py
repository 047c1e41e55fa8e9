"""On a GPU the shared operator equals softmax written out in float64, forward and backward, by each of its kernels."""

from __future__ import annotations

import pytest
import torch

from antefix.attention import shared
from antefix.attention.check import HeadShape, computes_right
from antefix.attention.kernels import kernel_mask
from antefix.attention.shared import shared_attention
from tests.parity.written_out import HEADS, ROWS, SCALE, assert_near, by_hand, draw_case, pairs

# Of the largest number: fp32 sums in another order, bf16 keeps 8 bits and fp16 11, and each gradient is a sum of such.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DIMS = [(8, 8), (8, 6), (6, 8), (64, 64), (72, 40), (256, 256)]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("kind", ["causal", "full", "masked", "one query", "one masked query"])
@pytest.mark.parametrize("length", [5, 64])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_softmax_written_out(
    dtype: torch.dtype, length: int, kind: str, dims: tuple[int, int], rows: list[int]
) -> None:
    """Kernels read queries in blocks of 32 or 64, so one length fills them and the other does not."""
    drawn, drawn_prefixes = draw_case(1 if "one" in kind else length, length, *dims)
    drawn[0] = drawn[0] * (8 / dims[0]) ** 0.5  # scores of wide heads as large as those of narrow ones
    mask, hidden = None, None
    if "masked" in kind:  # two keys are padding, and the first two queries see no token of their row at all
        seen = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
        seen[..., :2] = False
        seen[[row for row, owner in enumerate(rows) if owner < 0], ..., 0] = True  # or softmax is not defined
        seen = seen[:, :, -1:] if "one" in kind else seen
        mask = kernel_mask(seen.cuda(), dtype)
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    exact = [part.detach().to(dtype).double().requires_grad_() for part in (*drawn, *sum(drawn_prefixes, ()))]
    ours = [part.detach().to("cuda", dtype).requires_grad_() for part in exact]
    expected = by_hand(*exact[:3], pairs(exact[3:]), rows, hidden, kind == "causal")
    actual = shared_attention(*ours[:3], pairs(ours[3:]), rows, mask, kind == "causal", SCALE)
    with torch.no_grad():
        used = pairs(ours[3:])[: max(rows) + 1]
        inference = shared_attention(*ours[:3], used, rows, mask, kind == "causal", SCALE)
    assert_near(actual, expected, TOLERANCE[dtype])
    assert_near(inference, expected, TOLERANCE[dtype])
    grad = torch.randn_like(expected).to(dtype).double()
    theirs = torch.autograd.grad(expected, exact, grad, allow_unused=True, materialize_grads=True)
    for found, gradient in zip(torch.autograd.grad(actual, ours, grad.to(actual)), theirs, strict=True):
        assert_near(found, gradient, TOLERANCE[dtype])


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
