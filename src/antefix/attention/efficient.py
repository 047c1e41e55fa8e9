"""PyTorch's memory-efficient kernels of a GPU, which take masks and fp32: attention over one part of the keys.

They need as many key/value heads as query heads. If all queries of a row see the same keys, the query heads of one
key/value head become one longer head, which copies queries alone; otherwise keys and values are repeated. The kernels
follow Rabe & Staats (2021, arXiv 2112.05682).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_LSE_BLOCK = 32
"""The kernels read log-sum-exps in blocks of this many queries."""
_MASK_ALIGNMENT = 8
"""Each row of a mask begins at a multiple of this many numbers in memory."""


def attend_efficiently(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output `(batch, head, query, dim)` and log-sum-exp `(batch, head, query)`; all heads have one width."""
    folded, key, value = _equalize_heads(query, key, value, _queries_see_the_same(mask, is_causal))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = None if mask is None else _align(mask, folded)
    output, lse = kernel(folded, key, value, bias, True, 0.0, is_causal, scale=scale)[:2]
    return output.reshape(query.shape), lse[..., : folded.shape[2]].reshape(query.shape[:3])


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
    folded, all_keys, all_values = _equalize_heads(query, key, value, _queries_see_the_same(mask, is_causal))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    lse = lse.reshape(folded.shape[:3]).contiguous()  # the kernel reads only two of its strides
    lse = pad(lse, (0, -lse.shape[2] % _LSE_BLOCK), value=float("inf"))  # padding weighs nothing
    # In half precision the kernel assumes that outputs are laid out as it writes them: by query, then by head.
    output = output.reshape(folded.shape).transpose(1, 2).contiguous().transpose(1, 2)
    seed = torch.empty(0, dtype=torch.long, device=query.device)  # of dropout, which is not used
    grads = kernel(
        grad.reshape(folded.shape), folded, all_keys, all_values, None if mask is None else _align(mask, folded),
        output, lse, seed, seed, 0.0, (True, True, True, False), is_causal, scale=scale,
    )  # fmt: skip
    grad_key, grad_value = (
        part if part.shape == tensor.shape else part.unflatten(1, (tensor.shape[1], -1)).sum(2)
        for part, tensor in ((grads[1], key), (grads[2], value))
    )
    return grads[0].reshape(query.shape), grad_key, grad_value


def _queries_see_the_same(mask: Tensor | None, is_causal: bool) -> bool:
    """Return whether all queries of a row see the same keys, whatever their head."""
    return not is_causal and (mask is None or mask.shape[1] == mask.shape[2] == 1)


def _equalize_heads(query: Tensor, key: Tensor, value: Tensor, can_fold: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values with equally many heads: fewer, longer query heads if these can be folded."""
    batch, heads, _, dim = query.shape
    group_size = heads // key.shape[1]
    if group_size > 1 and can_fold:
        return query.reshape(batch, key.shape[1], -1, dim), key, value
    if group_size > 1:
        key, value = key.repeat_interleave(group_size, 1), value.repeat_interleave(group_size, 1)
    return query, key, value


def _align(mask: Tensor, query: Tensor) -> Tensor:
    """Return a mask `(batch, head, query, key)` whose rows are aligned in memory as the kernels want them."""
    keys = mask.shape[3]
    if any(stride % _MASK_ALIGNMENT for size, stride in zip(mask.shape[:3], mask.stride(), strict=False) if size > 1):
        mask = pad(mask, (0, -keys % _MASK_ALIGNMENT))[..., :keys]
    return mask.expand(*query.shape[:3], keys)
