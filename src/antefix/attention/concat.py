"""The reference: put the prefix before the keys and values of each row and let the base attend over both.

Slower than need be, because the prefix is copied for every row, but always right, whatever the base computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from antefix.attention.flex import prepend_to_block_mask
from antefix.attention.masks import prepend_to_mask
from antefix.attention.open_site import OpenSite
from antefix.attention.state import ForwardPrefixes, RelativePositions, SitePrefixes, expand_to_rows
from antefix.dispatch import AttentionFunction, implementation_of, is_causal
from antefix.errors import UnsupportedModelError

SUPPORTED = ("eager", "sdpa", "flex_attention")


def concatenate(
    forward: ForwardPrefixes,
    prefixes: SitePrefixes,
    base: AttentionFunction,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Let the base's own function attend over the joined keys and values."""
    implementation = implementation_of(module)
    if implementation not in SUPPORTED:
        raise UnsupportedModelError(
            f"a prefix cannot enter attention of implementation '{implementation}' yet; "
            f"load the model with attn_implementation={' or '.join(map(repr, SUPPORTED))}."
        )
    prefix_key, prefix_value, prefix_mask = expand_to_rows(prefixes)
    num_virtual_tokens = prefix_key.shape[2]
    if implementation == "flex_attention" and not isinstance(attention_mask, Tensor):
        mask: Any = prepend_to_block_mask(
            attention_mask, query, key, num_virtual_tokens, prefix_mask, prefixes.prefix_indices, forward.block_masks
        )
    else:
        # The sdpa function hides later keys by itself; the others add a mask to the scores and do nothing else.
        additive = implementation != "sdpa"
        hides_later = not additive and is_causal(module, kwargs)
        mask = prepend_to_mask(attention_mask, query, key, num_virtual_tokens, prefix_mask, hides_later, additive)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = _prepend_to_bias(
            kwargs["position_bias"], module, num_virtual_tokens, forward.relative_positions
        )
    joined_key = torch.cat([prefix_key, key], dim=2)
    joined_value = torch.cat([prefix_value, value], dim=2)
    return base(module, query, joined_key, joined_value, mask, *args, **kwargs)


def _prepend_to_bias(
    bias: Tensor, module: nn.Module, num_virtual_tokens: int, positions: RelativePositions | None
) -> Tensor:
    """Put the prefix columns before a bias `(batch or 1, head, query, key)`; cross-attention knows no distances."""
    site = OpenSite.of(module).site
    if positions is None and site.kind != "cross":
        raise UnsupportedModelError(
            f"the attention at '{site.path}' adds a bias by distance that antefix cannot tell of a prefix; leave its "
            "layer out of PrefixConfig.layers, or its kind out of PrefixConfig.sites."
        )
    if positions is None or site.kind == "cross":
        front = bias.new_zeros(*bias.shape[:3], num_virtual_tokens)
    else:
        front = positions.bias(num_virtual_tokens, module).to(bias.dtype)
    batch = max(front.shape[0], bias.shape[0])
    return torch.cat([front.expand(batch, -1, -1, -1), bias.expand(batch, -1, -1, -1)], dim=-1)
