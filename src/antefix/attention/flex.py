"""Masks for FlexAttention, which takes a rule instead of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from antefix.shapes import Bool, Float

BlockMasks: TypeAlias = dict[tuple[object, ...], tuple[BlockMask | None, BlockMask | None]]
"""Block masks over prefix and sequence, each behind the base's own, by what tells one from another in a forward."""


def attended_blocks(
    mask: BlockMask | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    num_virtual_tokens: int,
    real: Bool[Tensor, "batch token"] | None,
    prefix_indices: Sequence[int],
    made: BlockMasks,
) -> BlockMask | None:
    """Return the mask over prefix and sequence: every query sees every real prefix token. None hides nothing.

    `prefix_indices` tells which prefix each row has, and so what `real` holds. `made` keeps the masks of a forward, so
    that layers share one, as they do without a prefix.
    """
    if torch.compiler.is_compiling():  # a graph keeps nothing
        return _over_both(mask, query, key, num_virtual_tokens, real)
    hidden = id(mask), num_virtual_tokens, query.shape[2], key.shape[2], tuple(prefix_indices), query.device
    if hidden not in made:
        made[hidden] = mask, _over_both(mask, query, key, num_virtual_tokens, real)
    return made[hidden][1]


def _over_both(
    mask: BlockMask | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    num_virtual_tokens: int,
    real: Bool[Tensor, "batch token"] | None,
) -> BlockMask | None:
    if mask is None and real is None:
        return None

    # A row's padding comes first. Counting it compiles where looking it up does not: that breaks inductor's CPU kernel.
    padding = torch.zeros(query.shape[0], dtype=torch.long, device=query.device) if real is None else (~real).sum(1)

    def rule(batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Any:
        seen = key_index >= padding[batch]
        if mask is None:
            return seen
        sequence = mask.mask_mod(batch, head, query_index, (key_index - num_virtual_tokens).clamp(min=0))
        return seen & ((key_index < num_virtual_tokens) | sequence)

    return create_block_mask(
        rule, query.shape[0], None, query.shape[2], num_virtual_tokens + key.shape[2], device=query.device
    )
