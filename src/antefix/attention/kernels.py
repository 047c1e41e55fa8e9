"""Attention over one part of the keys, with its log-sum-exp, and its gradients: the kernels that PyTorch has for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from antefix.attention.efficient import attend_efficiently, differentiate_efficiently
from antefix.attention.masks import as_additive

_HALF = (torch.float16, torch.bfloat16)
_MAX_GPU_HEAD_DIM = 256


def obstacle_to_kernels(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why no kernel returns the log-sum-exp for heads this wide; None if one does."""
    on_gpu = device == "cuda"
    reasons = (
        (device not in ("cpu", "cuda"), f"there is no kernel for a device of type '{device}'"),
        (on_gpu and dtype not in (*_HALF, torch.float32), "the kernels of a GPU take fp32, bf16 and fp16"),
        (on_gpu and head_dim > _MAX_GPU_HEAD_DIM, "heads are too wide for a GPU's kernels"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def kernel_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a boolean or additive mask as numbers that every kernel can add to scores.

    The floor is half the lowest number: a kernel that works in powers of two multiplies it by 1.44, which must not
    overflow.
    """
    return as_additive(mask, dtype, torch.finfo(dtype).min / 2)


def is_on_gpu(tensor: Tensor) -> bool:
    """Return whether a GPU's kernels read this tensor, a CPU's otherwise."""
    return tensor.is_cuda


def _takes_flash(query: Tensor, mask: Tensor | None) -> bool:
    """Return whether a GPU's flash kernel can be used: it takes half precision and no mask."""
    return query.dtype in _HALF and mask is None


def attend_part(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, value_dim)` and log-sum-exp `(batch, head, query)` over these keys.

    `mask` is added to the scores; if it hides every key from a query, that query's log-sum-exp is too low to count.
    With `is_causal` there are as many keys as queries.
    """
    value_dim = value.shape[-1]
    query, key, value = _pad_to_one_width(query, key, value)
    if not is_on_gpu(query):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = kernel(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    elif _takes_flash(query, mask):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        output, lse = kernel(query, key, value, 0.0, is_causal, scale=scale)[:2]
    else:
        output, lse = attend_efficiently(query, key, value, mask, is_causal, scale)
    return (output if output.shape[-1] == value_dim else output[..., :value_dim]), lse


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
    padded = _pad_to_one_width(query, key, value)
    if (missing := padded[2].shape[-1] - dims[2]) > 0:
        grad, output = pad(grad, (0, missing)), pad(output, (0, missing))
    if not is_on_gpu(query):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = kernel(grad, *padded, output, lse, 0.0, is_causal, attn_mask=mask, scale=scale)
    elif _takes_flash(query, mask):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
        seed = torch.empty(0, dtype=torch.long, device=query.device)  # of dropout, which is not used
        lengths = (None, None, query.shape[2], key.shape[2])  # no rows are packed
        grads = kernel(grad, *padded, output, lse.contiguous(), *lengths, 0.0, is_causal, seed, seed, scale=scale)
    else:
        grads = differentiate_efficiently(grad, *padded, output, lse, mask, is_causal, scale)
    if padded[0] is query:
        return grads[0], grads[1], grads[2]
    grad_query, grad_key, grad_value = (tensor[..., :dim] for tensor, dim in zip(grads, dims, strict=True))
    return grad_query, grad_key, grad_value


def _pad_to_one_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen heads with zeros, which changes no score or output: kernels take one width, on a GPU a multiple of 8."""
    width = max(key.shape[-1], value.shape[-1])
    if is_on_gpu(query):
        width = -(-width // 8) * 8
    if key.shape[-1] == value.shape[-1] == width:
        return query, key, value
    query, key, value = (pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, key, value))
    return query, key, value
