"""A GPU's kernels are trusted after they have computed one small case right, forward and backward.

What they are given, the log-sum-exp of more keys than they see, is no part of what PyTorch promises of them. So the
first use on a device, in a dtype, is compared with softmax written out; where they differ, prefixes are joined instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from antefix.attention.shared import shared_attention

_TOLERANCE = 0.05
"""Of the largest number expected: half precision keeps 8 to 11 bits, a wrong weight is off by far more."""

_found: dict[tuple[torch.device, torch.dtype], bool] = {}


def is_trusted(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the shared operator is right on a device; found out once, but not by a graph being compiled."""
    key = (device, dtype)
    if key not in _found and not torch.compiler.is_compiling():
        _found[key] = computes_right(device, dtype)
    return _found.get(key, False)


def computes_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Compute a small case of two prefixes by the operator and by hand, and compare outputs and gradients."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            ours, by_hand = (_case(device, dtype, written_out) for written_out in (False, True))
    except RuntimeError:
        return False
    return all(
        bool((actual.double() - expected).abs().max() <= _TOLERANCE * expected.abs().max())
        for actual, expected in zip(ours, by_hand, strict=True)
    )


def _case(device: torch.device, dtype: torch.dtype, written_out: bool) -> list[Tensor]:
    """Return output and gradients of causal attention: 3 rows, 4 heads on 2, prefixes of 7 tokens, of 1, and none."""
    shapes = ((3, 4, 5, 16), (3, 2, 5, 16), (3, 2, 5, 16), (2, 7, 16), (2, 7, 16), (2, 1, 16), (2, 1, 16))
    tensors = []
    for number, shape in enumerate(shapes):
        count = torch.arange(torch.Size(shape).numel(), device=device).view(shape)
        drawn = torch.sin(1.7 * count + number).to(dtype)
        tensors.append(drawn.to(torch.float64 if written_out else dtype).requires_grad_())
    query, key, value, *prefixes = tensors
    pairs = [(prefixes[0], prefixes[1]), (prefixes[2], prefixes[3])]
    if written_out:
        output = torch.stack([
            _written_out(query[row], key[row], value[row], pairs[row] if row < 2 else None) for row in range(3)
        ])  # fmt: skip
    else:
        output = shared_attention(query, key, value, pairs, [0, 1, -1], None, True, 0.25)
    uneven = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, tensors, uneven)]


def _written_out(query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor] | None) -> Tensor:
    hidden = torch.full((5, 5), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], 1), torch.cat([prefix[1], value], 1)
        hidden = torch.cat([hidden.new_zeros(5, prefix[0].shape[1]), hidden], 1)
    scores = query @ key.repeat_interleave(2, 0).transpose(1, 2) * 0.25 + hidden
    return scores.softmax(-1) @ value.repeat_interleave(2, 0)
