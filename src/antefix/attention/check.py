"""A GPU's kernels are trusted only after they have computed a small case correctly, forward and backward.

Backward, they are given the log-sum-exp over more keys than they see, which PyTorch does not promise to support. So
their first use on a device, in a dtype, is compared with softmax written out; if the two differ, the prefix is
concatenated instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from antefix.attention.decoding import decode
from antefix.attention.kernels import kernel_mask
from antefix.attention.shared import shared_attention

logger = logging.getLogger(__name__)
Kernel = Literal["operator", "decoding"]
_TOLERANCE = 0.05
"""Of the largest number expected: half precision keeps 8 to 11 bits, a wrong weight is off by far more."""
_LENGTHS = (5, 32)
"""Tokens per row: kernels read queries in blocks of 32, and take other paths if one is not full."""
_PREFIX_INDICES = [0, 1, -1]


class HeadShape(NamedTuple):
    """What a kernel is made for: the widths of keys and values, and the number of query heads per key/value head."""

    key_dim: int = 16
    value_dim: int = 16
    group_size: int = 2


_USUAL = HeadShape()
_verdicts: dict[tuple[Kernel, torch.device, torch.dtype, HeadShape, bool], bool] = {}


def is_trusted(kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: HeadShape, is_masked: bool) -> bool:
    """Return whether a kernel is right there with such heads, with a mask or causal without one.

    The first question about a head shape answers for masked and unmasked calls. While a graph is compiled nothing is
    tried, and what is unknown is not trusted.
    """
    key = (kernel, device, dtype, heads)
    if (*key, is_masked) not in _verdicts and not torch.compiler.is_compiling():
        for masked in (False, True):
            _verdicts[(*key, masked)] = computes_right(*key, masked)
    return _verdicts.get((*key, is_masked), False)


def computes_right(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: HeadShape = _USUAL, is_masked: bool = False
) -> bool:
    """Compute small cases of two prefixes with a kernel and by hand, and compare outputs and gradients."""
    keep = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)  # checkpointing counts what is saved
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False), keep:
            return all(_is_right(kernel, _Case(device, dtype, heads, is_masked, length)) for length in _LENGTHS)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler of kernels fails in ways of its own
        logger.debug("the %s cannot be used on %s in %s with %s: %s", kernel, device, dtype, heads, error)
        return False


def _is_right(kernel: Kernel, case: _Case) -> bool:
    if kernel == "operator":
        computed, reference = _run_operator(case), _operator_reference(case)
    else:
        computed, reference = _run_decoding(case), _decoding_reference(case)
    return all(
        bool((actual.double() - expected).abs().max() <= _TOLERANCE * expected.abs().max())
        for actual, expected in zip(computed, reference, strict=True)
    )


@dataclass(frozen=True)
class _Case:
    """3 rows of `length` tokens, the first with two of padding if masked; prefixes of 7 tokens and of 1, and none."""

    device: torch.device
    dtype: torch.dtype
    heads: HeadShape
    is_masked: bool
    length: int

    def draw(self) -> list[Tensor]:
        """Draw queries, keys and values of 2 key/value heads, and keys and values of the prefixes."""
        (key_dim, value_dim, group_size), length = self.heads, self.length
        generator = torch.Generator("cpu").manual_seed(0)
        shapes = [(3, 2 * group_size, length, key_dim)]
        shapes += [(*rest, dim) for rest in ((3, 2, length), (2, 7), (2, 1)) for dim in (key_dim, value_dim)]
        drawn = [torch.randn(*shape, generator=generator, device="cpu") for shape in shapes]
        return [tensor.to(self.device, self.dtype).requires_grad_() for tensor in drawn]

    def draw_exact(self) -> list[Tensor]:
        """Return the numbers that `draw` returns in float64."""
        return [tensor.detach().double().requires_grad_() for tensor in self.draw()]

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.heads.key_dim**-0.5)

    @property
    def seen(self) -> Tensor:
        """Which tokens of its row each query sees; queries of padding see their prefix alone."""
        seen = torch.ones(3, 1, self.length, self.length, dtype=torch.bool, device=self.device).tril()
        if self.is_masked:
            seen[0, ..., :2] = False
        return seen


def _run_operator(case: _Case) -> list[Tensor]:
    """Return output and gradients of the operator."""
    with torch.enable_grad():
        query, key, value, *prefixes = tensors = case.draw()
        mask = kernel_mask(case.seen, case.dtype) if case.is_masked else None
        causal, pairs = mask is None, _pairs(prefixes)
        output = shared_attention(query, key, value, pairs, _PREFIX_INDICES, mask, causal, case.scale)
        return _with_gradients(output, tensors)


def _operator_reference(case: _Case) -> list[Tensor]:
    """Return what the operator should: softmax written out in float64, and its gradients."""
    with torch.enable_grad():
        query, key, value, *prefixes = tensors = case.draw_exact()
        output = _softmax_written_out(query, key, value, _pairs(prefixes), case.seen, case.scale)
        return _with_gradients(output, tensors)


def _run_decoding(case: _Case) -> list[Tensor]:
    """Return the decoding kernel's output for the last token of each row."""
    with torch.no_grad():
        query, key, value, *prefixes = case.draw()
        mask = kernel_mask(case.seen[:, :, -1:], case.dtype) if case.is_masked else None
        return [decode(query[:, :, -1:], key, value, _pairs(prefixes), _PREFIX_INDICES, mask, case.scale)]


def _decoding_reference(case: _Case) -> list[Tensor]:
    """Return what the decoding kernel should: softmax written out in float64."""
    with torch.no_grad():
        query, key, value, *prefixes = case.draw_exact()
        seen = case.seen[:, :, -1:]
        return [_softmax_written_out(query[:, :, -1:], key, value, _pairs(prefixes), seen, case.scale)]


def _pairs(prefixes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(prefixes[0], prefixes[1]), (prefixes[2], prefixes[3])]


def _with_gradients(output: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    uneven = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, tensors, uneven)]


def _softmax_written_out(
    query: Tensor, key: Tensor, value: Tensor, prefixes: list[tuple[Tensor, Tensor]], seen: Tensor, scale: float
) -> Tensor:
    outputs, group_size = [], query.shape[1] // key.shape[1]
    for row, prefix_index in enumerate(_PREFIX_INDICES):
        keys, values, visible = key[row], value[row], seen[row]
        if prefix_index >= 0:
            prefix_key, prefix_value = prefixes[prefix_index]
            keys, values = torch.cat([prefix_key, keys], 1), torch.cat([prefix_value, values], 1)
            visible = torch.cat([visible.new_ones(1, visible.shape[1], prefix_key.shape[1]), visible], 2)
        scores = query[row] @ keys.repeat_interleave(group_size, 0).transpose(1, 2) * scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        outputs.append(weights @ values.repeat_interleave(group_size, 0))
    return torch.stack(outputs)
