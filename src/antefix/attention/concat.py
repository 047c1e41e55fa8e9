"""The reference: put the prefix before the keys and values of each row and let the base attend over both.

Slower than need be, because the prefix is copied for every row, and always right, whatever the base computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from antefix.shapes import Bool, Float


def attended(
    mask: Tensor | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    prefix_key: Float[Tensor, "batch kv_head token key_dim"],
    real: Bool[Tensor, "batch token"] | None,
    is_causal: bool,
    additive: bool,
) -> Tensor | None:
    """Return the mask over prefix and sequence: every query sees every real prefix token.

    `mask` is the base's, boolean or additive, `(batch or 1, head or 1, query or 1, key or 1)`; without one, `is_causal`
    says whether the base would have hidden later keys, and `additive` which sort of mask it takes. None hides nothing.
    """
    queries, tokens = query.shape[2], prefix_key.shape[2]
    if mask is None:
        if real is None and not (is_causal and queries > 1):
            return None
        mask = torch.ones(1, 1, queries, key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril() if is_causal and queries > 1 else mask
        mask = _as_additive(mask, query.dtype) if additive else mask
    batch = mask.shape[0] if real is None else query.shape[0]
    mask = over_every_key(mask, key).expand(batch, -1, queries, -1)
    seen = torch.ones(batch, tokens, dtype=torch.bool, device=mask.device) if real is None else real
    seen = seen[:, None, None, :].expand(-1, mask.shape[1], queries, -1)
    if mask.dtype != torch.bool:
        seen = _as_additive(seen, mask.dtype)
    return torch.cat([seen, mask], dim=-1)


def over_every_key(mask: Tensor, key: Tensor) -> Tensor:
    """Return a mask with a column for each key, where the base's has one for all, which it relies on PyTorch to repeat.

    It is copied, as kernels read its columns one after another.
    """
    if mask.shape[-1] != 1 or key.shape[2] == 1:
        return mask
    return mask.expand(-1, -1, -1, key.shape[2]).contiguous()


def _as_additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to the scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
