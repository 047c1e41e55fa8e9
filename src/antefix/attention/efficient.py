"""PyTorch's memory-efficient kernels of a GPU, which take masks and fp32: attention over one part of the keys.

They know as many key/value heads as query heads. Where all queries of a row see the same keys, those of one key/value
head become queries of one head, which copies queries alone; elsewhere keys and values are repeated. The kernels follow
Rabe & Staats (2021, arXiv 2112.05682).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_LANES = 32
"""The kernels read log-sum-exps in blocks of so many queries."""
_MASK_STEP = 8
"""A row of a mask begins at a multiple of so many numbers in memory."""


def attend_efficiently(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, dim)` and log-sum-exp `(batch, head, query)`; all heads are of one width."""
    own, key, value = _of_as_many_heads(query, key, value, _sees_alike(mask, is_causal))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = None if mask is None else _aligned(mask, own)
    output, lse = kernel(own, key, value, bias, True, 0.0, is_causal, scale=scale)[:2]
    return output.reshape(query.shape), lse[..., : own.shape[2]].reshape(query.shape[:3])


def differentiate_efficiently(
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
    own, wide_key, wide_value = _of_as_many_heads(query, key, value, _sees_alike(mask, is_causal))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    lse = lse.reshape(own.shape[:3]).contiguous()  # of its strides the kernel asks for two alone
    lse = pad(lse, (0, -lse.shape[2] % _LANES), value=float("inf"))  # a query that is not there weighs nothing
    # In half precision the kernel takes it for granted that outputs lie as it writes them: by query, then by head.
    output = output.reshape(own.shape).transpose(1, 2).contiguous().transpose(1, 2)
    seed = torch.empty(0, dtype=torch.long, device=query.device)  # of dropout, which there is none of
    grads = kernel(
        grad.reshape(own.shape), own, wide_key, wide_value, None if mask is None else _aligned(mask, own), output,
        lse, seed, seed, 0.0, (True, True, True, False), is_causal, scale=scale,
    )  # fmt: skip
    grad_key, grad_value = (
        part if part.shape == narrow.shape else part.unflatten(1, (narrow.shape[1], -1)).sum(2)
        for part, narrow in ((grads[1], key), (grads[2], value))
    )
    return grads[0].reshape(query.shape), grad_key, grad_value


def _sees_alike(mask: Tensor | None, is_causal: bool) -> bool:
    """Return whether all queries of a row see the same of its keys, whatever their head."""
    return not is_causal and (mask is None or mask.shape[1] == mask.shape[2] == 1)


def _of_as_many_heads(query: Tensor, key: Tensor, value: Tensor, alike: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of as many heads: fewer, longer ones of queries where all see alike."""
    batch, heads, _, dim = query.shape
    group_size = heads // key.shape[1]
    if group_size > 1 and alike:
        return query.reshape(batch, key.shape[1], -1, dim), key, value
    if group_size > 1:
        key, value = key.repeat_interleave(group_size, 1), value.repeat_interleave(group_size, 1)
    return query, key, value


def _aligned(mask: Tensor, query: Tensor) -> Tensor:
    """Return a mask `(batch, head, query, key)` whose rows lie as the kernels want them in memory."""
    keys = mask.shape[3]
    if any(stride % _MASK_STEP for size, stride in zip(mask.shape[:3], mask.stride(), strict=False) if size > 1):
        mask = pad(mask, (0, -keys % _MASK_STEP))[..., :keys]
    return mask.expand(*query.shape[:3], keys)
