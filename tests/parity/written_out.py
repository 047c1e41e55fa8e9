"""Attention over prefixes as softmax written out, which the shared operator is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from antefix.attention.check import HeadShape
from antefix.attention.kernels import kernel_mask
from antefix.attention.shared import shared_attention

Pair = tuple[Tensor, Tensor]
ROWS = ([0, 0, 0], [0, 1, -1], [1, 0, 1], [-1, -1, 0], [1, 1, 1])
SCALE = 0.3
HEADS = [
    HeadShape(), HeadShape(64, 64, 8), HeadShape(80, 80, 1), HeadShape(96, 96, 4), HeadShape(192, 128, 1),
    HeadShape(128, 128, 7), HeadShape(256, 256, 1), HeadShape(64, 64, 48),
]  # fmt: skip
DIMS = [(8, 8), (8, 6), (6, 8), (64, 64), (72, 40), (256, 256)]
KINDS = ["causal", "full", "masked", "one query", "one masked query"]
LENGTHS = [5, 64]
"""Kernels read queries in blocks of 32 or 64, so one length fills them and the other does not."""
# Of the largest number: fp32 sums in another order, bf16 keeps 8 bits and fp16 11, and each gradient is a sum of such.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(True)


def draw_case(
    queries: int = 5, keys: int = 5, key_dim: int = 8, value_dim: int = 8, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Pair]]:
    """Draw queries of 4 heads, keys and values of 2, for 3 rows, and prefixes of 3 tokens and of 1."""
    torch.manual_seed(0)
    tensors = [
        draw(3, 4, queries, key_dim, dtype=dtype),
        draw(3, 2, keys, key_dim, dtype=dtype),
        draw(3, 2, keys, value_dim, dtype=dtype),
    ]
    return tensors, [(draw(2, n, key_dim, dtype=dtype), draw(2, n, value_dim, dtype=dtype)) for n in (3, 1)]


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefixes: Sequence[Pair],
    rows: Sequence[int],
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Write softmax out, row by row, over joined keys."""
    answers = []
    for number, owner in enumerate(rows):
        keys, values = key[number], value[number]
        hidden = torch.zeros(query.shape[2], key.shape[2], dtype=query.dtype)
        if mask is not None:
            hidden = hidden + mask[number, 0]
        if causal:
            hidden = hidden.masked_fill(~torch.ones_like(hidden).tril().bool(), float("-inf"))
        if owner >= 0:
            prefix_key, prefix_value = prefixes[owner]
            keys, values = torch.cat([prefix_key, keys], 1), torch.cat([prefix_value, values], 1)
            hidden = torch.cat([hidden.new_zeros(query.shape[2], prefix_key.shape[1]), hidden], 1)
        group = query.shape[1] // key.shape[1]
        scores = query[number] @ keys.repeat_interleave(group, 0).transpose(1, 2) * SCALE + hidden
        answers.append(scores.softmax(-1) @ values.repeat_interleave(group, 0))
    return torch.stack(answers)


def pairs(parts: Sequence[Tensor]) -> list[Pair]:
    """Return keys and values, which take turns, two by two."""
    return list(zip(parts[::2], parts[1::2], strict=True))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Require equality in proportion to the largest number expected; a NaN is far from everything."""
    worst = (actual.detach().double().cpu() - expected.detach()).abs().max()
    assert worst <= tolerance * max(float(expected.detach().abs().max()), 1e-3), float(worst)


def assert_operator_equals(
    dtype: torch.dtype, length: int, kind: str, dims: tuple[int, int], rows: list[int], device: str
) -> None:
    """Require that outputs and gradients on a device are those of softmax written out over the same numbers."""
    drawn, drawn_prefixes = draw_case(1 if "one" in kind else length, length, *dims)
    drawn[0] = drawn[0] * (8 / dims[0]) ** 0.5  # scores of wide heads as large as those of narrow ones
    mask, hidden = None, None
    if "masked" in kind:  # two keys are padding, and the first two queries see no token of their row at all
        seen = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
        seen[..., :2] = False
        seen[[row for row, owner in enumerate(rows) if owner < 0], ..., 0] = True  # or softmax is not defined
        seen = seen[:, :, -1:] if "one" in kind else seen
        mask = kernel_mask(seen.to(device), dtype)
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    exact = [part.detach().to(dtype).double().requires_grad_() for part in (*drawn, *sum(drawn_prefixes, ()))]
    ours = [part.detach().to(device, dtype).requires_grad_() for part in exact]
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
