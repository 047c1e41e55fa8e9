"""Attention over one part of the keys, with its log-sum-exp, and its gradients: PyTorch's kernels that tell it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from antefix.attention.efficient import attend_efficiently, differentiate_efficiently
from antefix.attention.masks import as_additive

_HALF = (torch.float16, torch.bfloat16)
_WIDEST_ON_GPU = 256


def obstacle_to_kernels(device: str, dtype: torch.dtype, width: int) -> str | None:
    """Return why no kernel returns the log-sum-exp for heads this wide; None where one does."""
    on_gpu = device == "cuda"
    reasons = (
        (device not in ("cpu", "cuda"), f"there is no kernel for a device of type '{device}'"),
        (on_gpu and dtype not in (*_HALF, torch.float32), "the kernels of a GPU take fp32, bf16 and fp16"),
        (on_gpu and width > _WIDEST_ON_GPU, "heads are too wide for a GPU's kernels"),
    )
    return next((reason for stands, reason in reasons if stands), None)


def kernel_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean or additive mask as numbers that every kernel can add to scores.

    The floor is half the lowest number: a kernel that works in powers of two multiplies it by 1.44, which must not
    overflow.
    """
    return as_additive(mask, dtype, torch.finfo(dtype).min / 2)


def _takes_flash(query: Tensor, mask: Tensor | None) -> bool:
    """Return whether a GPU's flash kernel attends: it takes half precision and no mask."""
    return query.dtype in _HALF and mask is None


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, value_dim)` and log-sum-exp `(batch, head, query)` over these keys.

    `mask` is added to the scores; a query that it hides every key from gets a log-sum-exp too low to count. With
    `is_causal` there are as many keys as queries.
    """
    width = value.shape[-1]
    query, key, value = _of_one_width(query, key, value)
    if query.is_cuda and not _takes_flash(query, mask):
        output, lse = attend_efficiently(query, key, value, mask, is_causal, scale)
    elif query.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        output, lse = kernel(query, key, value, 0.0, is_causal, scale=scale)[:2]
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    return (output if output.shape[-1] == width else output[..., :width]), lse


def differentiate_part(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value; `output` and `lse` are those over all parts together."""
    dims = (query.shape[-1], key.shape[-1], value.shape[-1])
    wide = _of_one_width(query, key, value)
    if (missing := wide[2].shape[-1] - dims[2]) > 0:
        grad, output = pad(grad, (0, missing)), pad(output, (0, missing))
    if query.is_cuda and not _takes_flash(query, mask):
        grads = differentiate_efficiently(grad, *wide, output, lse, mask, is_causal, scale)
    elif query.is_cuda:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
        seed = torch.empty(0, dtype=torch.long, device=query.device)  # of dropout, which there is none of
        lengths = (None, None, query.shape[2], key.shape[2])  # no rows are packed
        grads = kernel(grad, *wide, output, lse.contiguous(), *lengths, 0.0, is_causal, seed, seed, scale=scale)
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = kernel(grad, *wide, output, lse, 0.0, is_causal, attn_mask=mask, scale=scale)
    if wide[0] is query:
        return grads[0], grads[1], grads[2]
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
