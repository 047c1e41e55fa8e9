"""Masks for FlexAttention, which takes a function instead of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from antefix.shapes import Bool, Float

BlockMasks: TypeAlias = dict[tuple[object, ...], tuple[BlockMask | None, BlockMask | None]]
"""The base's block mask and the one over prefix and sequence, by what tells one case from another in a forward."""


def prepend_to_block_mask(
    mask: BlockMask | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    num_virtual_tokens: int,
    prefix_mask: Bool[Tensor, "batch token"] | None,
    prefix_indices: Sequence[int],
    block_masks: BlockMasks,
) -> BlockMask | None:
    """Return the mask over prefix and sequence: every query sees every prefix token that is not padding.

    `prefix_mask` is False for padding; `prefix_indices`, which prefix each row has, determines it. `block_masks` keeps
    the masks of a forward, so that layers share one, as they do without a prefix. None hides nothing.
    """
    if torch.compiler.is_compiling():  # a graph keeps nothing
        return _create(mask, query, key, num_virtual_tokens, prefix_mask)
    case = id(mask), num_virtual_tokens, query.shape[2], key.shape[2], tuple(prefix_indices), query.device
    if case not in block_masks:
        block_masks[case] = mask, _create(mask, query, key, num_virtual_tokens, prefix_mask)
    return block_masks[case][1]


def _create(
    mask: BlockMask | None,
    query: Float[Tensor, "batch head query key_dim"],
    key: Float[Tensor, "batch kv_head key key_dim"],
    num_virtual_tokens: int,
    prefix_mask: Bool[Tensor, "batch token"] | None,
) -> BlockMask | None:
    if mask is None and prefix_mask is None:
        return None

    # A row's padding comes first, so counting it is enough: looking it up would break inductor's CPU kernel.
    if prefix_mask is None:
        padding = torch.zeros(query.shape[0], dtype=torch.long, device=query.device)
    else:
        padding = (~prefix_mask).sum(1)

    def mask_mod(batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Any:
        seen = key_index >= padding[batch]
        if mask is None:
            return seen
        seen_in_sequence = mask.mask_mod(batch, head, query_index, (key_index - num_virtual_tokens).clamp(min=0))
        return seen & ((key_index < num_virtual_tokens) | seen_in_sequence)

    return create_block_mask(
        mask_mod, query.shape[0], None, query.shape[2], num_virtual_tokens + key.shape[2], device=query.device
    )
