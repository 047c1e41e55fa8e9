"""A GPU's kernels are trusted after they have computed one small case right, forward and backward.

What they are given, the log-sum-exp of more keys than they see, is no part of what PyTorch promises of them. So the
first use on a device, in a dtype, is compared with softmax written out; where they differ, prefixes are joined instead.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from antefix.attention.decoding import decode
from antefix.attention.kernels import added
from antefix.attention.shared import shared_attention

logger = logging.getLogger(__name__)
Way = Literal["operator", "decoding"]
_TOLERANCE = 0.05
"""Of the largest number expected: half precision keeps 8 to 11 bits, a wrong weight is off by far more."""
_ROWS = [0, 1, -1]

_found: dict[tuple[Way, torch.device, torch.dtype, int, bool], bool] = {}


def is_trusted(way: Way, device: torch.device, dtype: torch.dtype, width: int, is_masked: bool) -> bool:
    """Return whether a way to attend is right there with heads that wide, beside a mask or where causal.

    That is found out once for each, but not by a graph being compiled.
    """
    key = (way, device, dtype, width, is_masked)
    if key not in _found and not torch.compiler.is_compiling():
        _found[key] = computes_right(*key)
    return _found.get(key, False)


def computes_right(
    way: Way, device: torch.device, dtype: torch.dtype, width: int = 16, is_masked: bool = False
) -> bool:
    """Compute a small case of two prefixes one way and by hand, and compare outputs and gradients."""
    keep = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)  # checkpointing counts what is saved
    case = _case if way == "operator" else _decoding_case
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False), keep:
            ours, by_hand = (case(device, dtype, width, is_masked, written_out) for written_out in (False, True))
    except Exception as error:  # a compiler of kernels fails in ways of its own
        logger.debug("the %s cannot be used on %s in %s: %s", way, device, dtype, error)
        return False
    return all(
        bool((actual.double() - expected).abs().max() <= _TOLERANCE * expected.abs().max())
        for actual, expected in zip(ours, by_hand, strict=True)
    )


def _case(device: torch.device, dtype: torch.dtype, width: int, is_masked: bool, written_out: bool) -> list[Tensor]:
    """Return output and gradients of the operator."""
    with torch.enable_grad():
        query, key, value, *prefixes = tensors = _draw(device, dtype, width, written_out)
        seen = _seen(device, is_masked)
        if written_out:
            output = _written_out(query, key, value, prefixes, seen)
        else:
            mask = added(seen, query) if is_masked else None
            output = shared_attention(query, key, value, _pairs(prefixes), _ROWS, mask, not is_masked, width**-0.5)
        uneven = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape).to(output.dtype)
        return [output.detach(), *torch.autograd.grad(output, tensors, uneven)]


def _decoding_case(
    device: torch.device, dtype: torch.dtype, width: int, is_masked: bool, written_out: bool
) -> list[Tensor]:
    """Return the output for the last token of each row."""
    with torch.no_grad():
        query, key, value, *prefixes = _draw(device, dtype, width, written_out)
        query, seen = query[:, :, -1:], _seen(device, is_masked)[:, :, -1:]
        if written_out:
            return [_written_out(query, key, value, prefixes, seen)]
        mask = added(seen, query) if is_masked else None
        return [decode(query, key, value, _pairs(prefixes), _ROWS, mask, width**-0.5)]


def _draw(device: torch.device, dtype: torch.dtype, width: int, written_out: bool) -> list[Tensor]:
    """Draw queries of 4 heads, keys and values of 2, for 3 rows of 5 tokens, and prefixes of 7 tokens and of 1."""
    generator = torch.Generator("cpu").manual_seed(0)
    tensors = []
    for shape in ((3, 4, 5), (3, 2, 5), (3, 2, 5), (2, 7), (2, 7), (2, 1), (2, 1)):
        drawn = torch.randn(*shape, width, generator=generator, device="cpu").to(device, dtype)
        tensors.append(drawn.to(torch.float64 if written_out else dtype).requires_grad_())
    return tensors


def _seen(device: torch.device, is_masked: bool) -> Tensor:
    """Return which tokens of its row each query sees: of two tokens of padding, queries see their prefix alone."""
    seen = torch.ones(3, 1, 5, 5, dtype=torch.bool, device=device).tril()
    if is_masked:
        seen[0, ..., :2] = False
    return seen


def _pairs(prefixes: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(prefixes[0], prefixes[1]), (prefixes[2], prefixes[3])]


def _written_out(query: Tensor, key: Tensor, value: Tensor, prefixes: list[Tensor], seen: Tensor) -> Tensor:
    answers = []
    for row, group in enumerate(_ROWS):
        keys, values, visible = key[row], value[row], seen[row]
        if group >= 0:
            prefix_key, prefix_value = _pairs(prefixes)[group]
            keys, values = torch.cat([prefix_key, keys], 1), torch.cat([prefix_value, values], 1)
            visible = torch.cat([visible.new_ones(1, visible.shape[1], prefix_key.shape[1]), visible], 2)
        scores = query[row] @ keys.repeat_interleave(2, 0).transpose(1, 2) * query.shape[3] ** -0.5
        answers.append(scores.masked_fill(~visible, float("-inf")).softmax(-1) @ values.repeat_interleave(2, 0))
    return torch.stack(answers)
