"""When the shared operator computes what the base would, and how it is then called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active as is_transformed  # as autograd.Function itself asks, in 50 ns
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from antefix.attention.check import HeadShape, is_trusted
from antefix.attention.decoding import can_decode, decode
from antefix.attention.kernels import kernel_mask, obstacle_to_kernels
from antefix.attention.masks import expand_to_keys
from antefix.attention.shared import shared_attention
from antefix.dispatch import AttentionFunction, is_causal


def obstacle_to_sharing(
    base: AttentionFunction,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: object,
    *args: Any,
    **arguments: Any,
) -> str | None:
    """Return why the prefix has to be copied for each row here, None if it is shared; the rest goes to the base."""
    same_dtype = query.dtype == key.dtype == value.dtype
    reasons = (
        (base is not sdpa_attention_forward, "the attention is not Transformers' sdpa"),
        (bool(args), "the model gives its attention arguments without names"),
        (arguments.get("position_bias") is not None, "the model adds a bias by distance"),
        (arguments.get("softcap") is not None, "the model caps its scores"),
        (bool(arguments.get("dropout")), "the model drops attention weights"),
        (isinstance(mask, Tensor) and mask.requires_grad, "the mask is learned"),
        (is_transformed(), "torch.func transforms the model"),
        (not same_dtype, "queries, keys and values are of different dtypes"),
        (query.shape[0] != key.shape[0], "queries and keys are of different batches"),
        (not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1, "the numbers of a head lie apart in memory"),
    )
    reason = next((reason for applies, reason in reasons if applies), None)
    if reason is None and not query.is_cpu:
        reason = obstacle_to_kernels(query.device.type, query.dtype, max(query.shape[-1], value.shape[-1]))
        if reason is None and not is_trusted("operator", *_kernel_case(query, key, value), mask is not None):
            reason = "this GPU's kernels did not compute a small case right"
    return reason


def share(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prefixes: Sequence[tuple[Tensor, Tensor]],
    prefix_indices: Sequence[int],
    lay_together: Callable[[], tuple[Tensor, Tensor]] | None = None,
    **arguments: Any,
) -> Tensor:
    """Return the attention output `(batch, query, head, value_dim)`, contiguous as from Transformers' sdpa function."""
    num_queries = query.shape[2]
    causal = num_queries > 1 and mask is None and is_causal(module, arguments)
    if causal:  # a static cache has slots still empty, and kernels disagree on which keys are hidden then
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
    if mask is not None:
        mask = expand_to_keys(kernel_mask(mask, query.dtype), key).expand(len(query), -1, num_queries, -1)
    scale = arguments.get("scaling")
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if _takes_decoding_kernel(query, key, value, mask, prefixes):
        output = decode(query, key, value, prefixes, prefix_indices, mask, scale)
    else:
        output = shared_attention(query, key, value, prefixes, prefix_indices, mask, causal, scale, lay_together)
    return output.transpose(1, 2).contiguous()


def _takes_decoding_kernel(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefixes: Sequence[tuple[Tensor, Tensor]]
) -> bool:
    return (
        query.is_cuda
        and can_decode(query, key, value, mask, prefixes)
        and is_trusted("decoding", *_kernel_case(query, key, value), mask is not None)
    )


def _kernel_case(query: Tensor, key: Tensor, value: Tensor) -> tuple[torch.device, torch.dtype, HeadShape]:
    """Return what a kernel is compiled and trusted for."""
    return query.device, query.dtype, HeadShape(query.shape[3], value.shape[3], query.shape[1] // key.shape[1])
