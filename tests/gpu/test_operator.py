"""On a GPU the shared operator equals softmax written out in float64, forward and backward, by each of its kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from antefix.attention import shared
from antefix.attention.check import HeadShape, Way, computes_right
from antefix.attention.decoding import can_decode, decode
from antefix.attention.kernels import added
from antefix.attention.shared import shared_attention
from tests.parity.written_out import ROWS, SCALE, by_hand, draw_case

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
        mask = added(seen.cuda(), torch.empty(0, dtype=dtype))
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    exact = [part.detach().to(dtype).double().requires_grad_() for part in (*drawn, *sum(drawn_prefixes, ()))]
    ours = [part.detach().to("cuda", dtype).requires_grad_() for part in exact]
    expected = by_hand(*exact[:3], _pairs(exact[3:]), rows, hidden, kind == "causal")
    actual = shared_attention(*ours[:3], _pairs(ours[3:]), rows, mask, kind == "causal", SCALE)
    with torch.no_grad():
        used = _pairs(ours[3:])[: max(rows) + 1]
        inference = shared_attention(*ours[:3], used, rows, mask, kind == "causal", SCALE)
    assert_near(actual, expected, TOLERANCE[dtype])
    assert_near(inference, expected, TOLERANCE[dtype])
    grad = torch.randn_like(expected).to(dtype).double()
    theirs = torch.autograd.grad(expected, exact, grad, allow_unused=True, materialize_grads=True)
    for found, gradient in zip(torch.autograd.grad(actual, ours, grad.to(actual)), theirs, strict=True):
        assert_near(found, gradient, TOLERANCE[dtype])


@pytest.mark.parametrize("tokens", [1, 511, 512, 3000])
@pytest.mark.parametrize("dims", [(8, 6), (64, 64), (40, 72), (256, 256)], ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_decoding(dtype: torch.dtype, is_masked: bool, dims: tuple[int, int], tokens: int) -> None:
    """One query a row, by its own kernel and by the operator, before prefixes of any length, one of 2 tokens beside."""
    drawn, _ = draw_case(1, 70, *dims)
    drawn[0] = drawn[0] * (8 / dims[0]) ** 0.5
    prefixes = [torch.randn(2, length, dim, dtype=torch.float64) for length in (tokens, 2) for dim in dims]
    exact = [part.detach().to(dtype).double() for part in (*drawn, *prefixes)]
    ours = [part.to("cuda", dtype) for part in exact]
    mask = hidden = None
    if is_masked:
        seen = torch.rand(3, 1, 1, 70) < 0.5
        mask = added(seen.cuda(), ours[0])
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    for rows in ([0, 0, 0], [0, -1, 1], [1, 0, 1]):
        expected = by_hand(*exact[:3], _pairs(exact[3:]), rows, hidden, False)
        with torch.no_grad():
            assert can_decode(*ours[:3], mask, _pairs(ours[3:]))
            at_once = decode(*ours[:3], _pairs(ours[3:]), rows, mask, SCALE)
            in_parts = shared_attention(*ours[:3], _pairs(ours[3:])[: max(rows) + 1], rows, mask, False, SCALE)
        assert_near(at_once, expected, TOLERANCE[dtype])
        assert_near(in_parts, expected, TOLERANCE[dtype])


def test_a_prefix_may_begin_anywhere_in_memory() -> None:
    """An address that is no multiple of 16 bytes is read by smaller pieces."""
    drawn, _ = draw_case(1, 70, 64, 64)
    exact = [part.detach().to(torch.bfloat16).double() for part in drawn]
    prefix = torch.randn(2, 2 * 300 * 64 + 1).to(torch.bfloat16)
    exact_pair = tuple(part[1:].view(2, 300, 64).double() for part in prefix)
    pair = tuple(part.cuda()[1:].view(2, 300, 64) for part in prefix)
    expected = by_hand(*exact, [exact_pair], [0, -1, 0], None, False)
    with torch.no_grad():
        actual = decode(*(part.to("cuda", torch.bfloat16) for part in exact), [pair], [0, -1, 0], None, SCALE)
    assert_near(actual, expected, TOLERANCE[torch.bfloat16])


HEADS = [
    HeadShape(), HeadShape(64, 64, 8), HeadShape(80, 80, 1), HeadShape(96, 96, 4), HeadShape(192, 128, 1),
    HeadShape(128, 128, 7), HeadShape(256, 256, 1), HeadShape(64, 64, 48),
]  # fmt: skip


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("way", ["operator", "decoding"])
def test_the_kernels_are_trusted(way: Way, dtype: torch.dtype, is_masked: bool, heads: HeadShape) -> None:
    assert computes_right(way, torch.device("cuda", 0), dtype, heads, is_masked)


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


def _pairs(parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(parts[::2], parts[1::2], strict=True))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Require equality in proportion to the largest number expected; a NaN is far from everything."""
    worst = (actual.detach().double().cpu() - expected.detach()).abs().max()
    assert worst <= tolerance * max(float(expected.detach().abs().max()), 1e-3), float(worst)
