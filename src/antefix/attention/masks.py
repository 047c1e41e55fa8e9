"""Masks as tensors: a prefix's columns in front of them, and booleans as numbers to add to scores."""

from __future__ import annotations

import torch
from torch import Tensor

from antefix.shapes import Bool, Float


def prepend_to_mask(
    mask: Tensor | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    num_virtual_tokens: int,
    prefix_mask: Bool[Tensor, "batch token"] | None,
    is_causal: bool,
    additive: bool,
) -> Tensor | None:
    """Return the mask over prefix and sequence: every query sees every prefix token that is not padding.

    `mask` is the base's, boolean or additive, `(batch or 1, head or 1, query or 1, key or 1)`. If there is none,
    `is_causal` says whether the base would have hidden later keys, and `additive` which sort of mask it takes.
    `prefix_mask` is False for padding. None hides nothing.
    """
    queries = query.shape[2]
    if mask is None:
        if prefix_mask is None and not (is_causal and queries > 1):
            return None
        mask = torch.ones(1, 1, queries, key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril() if is_causal and queries > 1 else mask
        mask = as_additive(mask, query.dtype, torch.finfo(query.dtype).min) if additive else mask
    batch = mask.shape[0] if prefix_mask is None else query.shape[0]
    mask = expand_to_keys(mask, key).expand(batch, -1, queries, -1)
    if prefix_mask is None:
        prefix_mask = torch.ones(batch, num_virtual_tokens, dtype=torch.bool, device=mask.device)
    front = prefix_mask[:, None, None, :].expand(-1, mask.shape[1], queries, -1)
    if mask.dtype != torch.bool:
        front = as_additive(front, mask.dtype, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask], dim=-1)


def expand_to_keys(mask: Tensor, key: Tensor) -> Tensor:
    """Return a mask with a column for each key, even if the base's has one for all and relies on broadcasting.

    It is copied, because kernels read its columns one after another.
    """
    if mask.shape[-1] != 1 or key.shape[2] == 1:
        return mask
    return mask.expand(-1, -1, -1, key.shape[2]).contiguous()


def as_additive(mask: Tensor, dtype: torch.dtype, floor: float) -> Tensor:
    """Return a boolean or additive mask as numbers to add to scores: `floor` for hidden keys, and nothing below it."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, floor)
    return mask.to(dtype).clamp(min=floor)
