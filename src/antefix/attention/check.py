"""A GPU's kernels are trusted only after they have computed a small case correctly, forward and backward.

Backward, they are given the log-sum-exp over more keys than they see, which PyTorch does not promise to support. So
their first use on a device, in a dtype, is compared with softmax written out; where the two differ, the prefix is
concatenated instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from antefix.attention.decoding import decode
from antefix.attention.kernels import kernel_mask
from antefix.attention.shared import shared_attention

logger = logging.getLogger(__name__)
Way = Literal["operator", "decoding"]
_TOLERANCE = 0.05
"""Of the largest number expected: half precision keeps 8 to 11 bits, a wrong weight is off by far more."""
_LENGTHS = (5, 32)
"""Tokens of a row: kernels read queries in blocks of 32, and go other ways where one is not full."""
_PREFIX_INDICES = [0, 1, -1]


class HeadShape(NamedTuple):
    """What a kernel is made for: the widths of keys and of values, and how many query heads share one of them."""

    key_dim: int = 16
    value_dim: int = 16
    group_size: int = 2


_USUAL = HeadShape()
_found: dict[tuple[Way, torch.device, torch.dtype, HeadShape, bool], bool] = {}


def is_trusted(way: Way, device: torch.device, dtype: torch.dtype, heads: HeadShape, is_masked: bool) -> bool:
    """Return whether a way to attend is right there with such heads, beside a mask or where causal.

    The first question about a kind of head answers for masked and unmasked calls. While a graph is compiled nothing is
    tried, and what is unknown is not trusted.
    """
    key = (way, device, dtype, heads)
    if (*key, is_masked) not in _found and not torch.compiler.is_compiling():
        for masked in (False, True):
            _found[(*key, masked)] = computes_right(*key, masked)
    return _found.get((*key, is_masked), False)


def computes_right(
    way: Way, device: torch.device, dtype: torch.dtype, heads: HeadShape = _USUAL, is_masked: bool = False
) -> bool:
    """Compute small cases of two prefixes one way and by hand, and compare outputs and gradients."""
    keep = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)  # checkpointing counts what is saved
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False), keep:
            return all(_is_right(way, _Case(device, dtype, heads, is_masked, length)) for length in _LENGTHS)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler of kernels fails in ways of its own
        logger.debug("the %s cannot be used on %s in %s with %s: %s", way, device, dtype, heads, error)
        return False


def _is_right(way: Way, case: _Case) -> bool:
    compute = _operate if way == "operator" else _decode_last
    return all(
        bool((actual.double() - expected).abs().max() <= _TOLERANCE * expected.abs().max())
        for actual, expected in zip(compute(case), compute(replace(case, written_out=True)), strict=True)
    )


@dataclass(frozen=True)
class _Case:
    """3 rows of so many tokens, the first with two of padding where it is masked; prefixes of 7 tokens, of 1, and none.

    What is written out is so in float64.
    """

    device: torch.device
    dtype: torch.dtype
    heads: HeadShape
    is_masked: bool
    length: int
    written_out: bool = False

    def draw(self) -> list[Tensor]:
        """Draw queries, keys and values of 2 key/value heads, and keys and values of the prefixes."""
        (key_dim, value_dim, group_size), length = self.heads, self.length
        generator = torch.Generator("cpu").manual_seed(0)
        shapes = [(3, 2 * group_size, length, key_dim)]
        shapes += [(*rest, dim) for rest in ((3, 2, length), (2, 7), (2, 1)) for dim in (key_dim, value_dim)]
        tensors = []
        for shape in shapes:
            drawn = torch.randn(*shape, generator=generator, device="cpu").to(self.device, self.dtype)
            tensors.append(drawn.to(torch.float64 if self.written_out else self.dtype).requires_grad_())
        return tensors

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.heads.key_dim**-0.5)

    @property
    def seen(self) -> Tensor:
        """Which tokens of its row each query sees: of padding, queries see their prefix alone."""
        seen = torch.ones(3, 1, self.length, self.length, dtype=torch.bool, device=self.device).tril()
        if self.is_masked:
            seen[0, ..., :2] = False
        return seen


def _operate(case: _Case) -> list[Tensor]:
    """Return output and gradients of the operator."""
    with torch.enable_grad():
        query, key, value, *prefixes = tensors = case.draw()
        if case.written_out:
            output = _written_out(query, key, value, prefixes, case.seen)
        else:
            mask = kernel_mask(case.seen, case.dtype) if case.is_masked else None
            output = shared_attention(
                query, key, value, _pairs(prefixes), _PREFIX_INDICES, mask, mask is None, case.scale
            )
        uneven = torch.linspace(-1, 1, output.numel(), device=case.device).view(output.shape).to(output.dtype)
        return [output.detach(), *torch.autograd.grad(output, tensors, uneven)]


def _decode_last(case: _Case) -> list[Tensor]:
    """Return the output for the last token of each row."""
    with torch.no_grad():
        query, key, value, *prefixes = case.draw()
        query, seen = query[:, :, -1:], case.seen[:, :, -1:]
        if case.written_out:
            return [_written_out(query, key, value, prefixes, seen)]
        mask = kernel_mask(seen, case.dtype) if case.is_masked else None
        return [decode(query, key, value, _pairs(prefixes), _PREFIX_INDICES, mask, case.scale)]


def _pairs(prefixes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(prefixes[0], prefixes[1]), (prefixes[2], prefixes[3])]


def _written_out(query: Tensor, key: Tensor, value: Tensor, prefixes: list[Tensor], seen: Tensor) -> Tensor:
    answers, group_size = [], query.shape[1] // key.shape[1]
    for row, prefix_index in enumerate(_PREFIX_INDICES):
        keys, values, visible = key[row], value[row], seen[row]
        if prefix_index >= 0:
            prefix_key, prefix_value = _pairs(prefixes)[prefix_index]
            keys, values = torch.cat([prefix_key, keys], 1), torch.cat([prefix_value, values], 1)
            visible = torch.cat([visible.new_ones(1, visible.shape[1], prefix_key.shape[1]), visible], 2)
        scores = query[row] @ keys.repeat_interleave(group_size, 0).transpose(1, 2) * query.shape[3] ** -0.5
        answers.append(
            scores.masked_fill(~visible, float("-inf")).softmax(-1) @ values.repeat_interleave(group_size, 0)
        )
    return torch.stack(answers)
