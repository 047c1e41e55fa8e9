"""Attention over one part of the keys, with its log-sum-exp, and its gradients: PyTorch's flash kernel for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, value_dim)` and log-sum-exp `(batch, head, query)` over these keys.

    `mask` is added to the scores; a query that it hides every key from gets a log-sum-exp too low to count.
    """
    width = value.shape[-1]
    query, key, value = _of_one_width(query, key, value)
    output, total = _forward(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    return (output if output.shape[-1] == width else output[..., :width]), total


def differentiate_part(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    total: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; `output` and `total` are those over all parts together."""
    wide_query, wide_key, wide_value = _of_one_width(query, key, value)
    width = wide_value.shape[-1] - value.shape[-1]
    grads = _backward(
        pad(grad, (0, width)) if width else grad, wide_query, wide_key, wide_value,
        pad(output, (0, width)) if width else output, total, 0.0, is_causal, attn_mask=mask, scale=scale,
    )  # fmt: skip
    dims = (query.shape[-1], key.shape[-1], value.shape[-1])
    grad_query, grad_key, grad_value = (grad[..., :dim] for grad, dim in zip(grads, dims, strict=True))
    return grad_query, grad_key, grad_value


def _of_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen keys or values with zeros, which changes no score and no output: the kernel knows one head dimension."""
    missing = key.shape[-1] - value.shape[-1]
    if missing > 0:
        return query, key, pad(value, (0, missing))
    if missing < 0:
        return pad(query, (0, -missing)), pad(key, (0, -missing)), value
    return query, key, value
