"""Attention over prefixes as softmax written out, which the shared operator is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from antefix.attention.check import HeadShape

Pair = tuple[Tensor, Tensor]
ROWS = ([0, 0, 0], [0, 1, -1], [1, 0, 1], [-1, -1, 0], [1, 1, 1])
SCALE = 0.3
HEADS = [
    HeadShape(), HeadShape(64, 64, 8), HeadShape(80, 80, 1), HeadShape(96, 96, 4), HeadShape(192, 128, 1),
    HeadShape(128, 128, 7), HeadShape(256, 256, 1), HeadShape(64, 64, 48),
]  # fmt: skip


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
