"""Attention over one part of the keys, with its log-sum-exp, and its gradients: PyTorch's flash kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_HALF = (torch.float16, torch.bfloat16)
_WIDEST_ON_GPU = 256


def obstacle_to_kernels(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    """Return why no kernel tells the log-sum-exp for tensors like these; None where one does."""
    device = query.device.type
    on_gpu = device == "cuda"
    reasons = (
        (device not in ("cpu", "cuda"), f"there is no kernel for a device of type '{device}'"),
        (on_gpu and query.dtype not in _HALF, "the flash kernel of a GPU takes half precision alone"),
        (on_gpu and mask is not None, "the flash kernel of a GPU takes no mask"),
        (on_gpu and max(query.shape[-1], value.shape[-1]) > _WIDEST_ON_GPU, "heads are too wide for a GPU's kernel"),
    )
    return next((reason for stands, reason in reasons if stands), None)


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, value_dim)` and log-sum-exp `(batch, head, query)` over these keys.

    `mask` is added to the scores; a query that it hides every key from gets a log-sum-exp too low to count. With
    `is_causal` there are as many keys as queries.
    """
    width = value.shape[-1]
    query, key, value = _of_one_width(query, key, value)
    if query.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        output, total = kernel(query, key, value, 0.0, is_causal, scale=scale)[:2]
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, total = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
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
    dims = (query.shape[-1], key.shape[-1], value.shape[-1])
    wide = _of_one_width(query, key, value)
    if (missing := wide[2].shape[-1] - dims[2]) > 0:
        grad, output = pad(grad, (0, missing)), pad(output, (0, missing))
    if query.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
        unused = torch.empty(0, dtype=torch.long, device=query.device)  # lengths of packed rows, and dropout's seed
        lengths = (unused, unused, query.shape[2], key.shape[2])
        grads = kernel(grad, *wide, output, total.contiguous(), *lengths, 0.0, is_causal, unused, unused, scale=scale)
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = kernel(grad, *wide, output, total, 0.0, is_causal, attn_mask=mask, scale=scale)
    grad_query, grad_key, grad_value = (part[..., :dim] for part, dim in zip(grads, dims, strict=True))
    return grad_query, grad_key, grad_value


def _of_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen heads with zeros, which changes no score and no output: a kernel knows one width, a GPU's only eights."""
    wide = max(key.shape[-1], value.shape[-1])
    if query.is_cuda:
        wide = -(-wide // 8) * 8
    if key.shape[-1] == value.shape[-1] == wide:
        return query, key, value
    query, key, value = (pad(part, (0, wide - part.shape[-1])) for part in (query, key, value))
    return query, key, value
