"""The function registered with Transformers: the base's attention, with the prefix of its site put in front."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from antefix.attention.carrier import Carrier
from antefix.attention.choice import obstacle_to_sharing, share
from antefix.attention.concat import attended
from antefix.attention.flex import attended_blocks
from antefix.attention.state import NO_PREFIXES, ForwardPrefixes, for_each_row
from antefix.continuous import refusal
from antefix.dispatch import AttentionFunction, base_attention, implementation_of, is_causal, settings_of, switch
from antefix.errors import UnsupportedModelError
from antefix.observation import KEYWORD
from antefix.sites import Site

logger = logging.getLogger(__name__)
SUPPORTED = ("eager", "sdpa", "flex_attention")


def open_site(
    module: nn.Module, site: Site, carrier: Carrier[ForwardPrefixes | None] | None, is_wanted: Callable[[], bool]
) -> Callable[[], None]:
    """Let prefixes into the attention of one module; the returned function closes it again, bit for bit.

    A module that no keyword reaches gets its prefixes from a carrier; `is_wanted` tells whether what is in use has
    some for it.
    """
    return switch(module, "antefix", attend, antefix_site=site, antefix_carrier=carrier, antefix_is_wanted=is_wanted)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the base does over `[prefix; sequence]`; tensors are `(batch, head, token, dim)`."""
    forward: ForwardPrefixes | None = kwargs.pop(KEYWORD, None)
    own = settings_of(module.config)
    site: Site = own["antefix_site"]
    if forward is None and own["antefix_carrier"] is not None:
        forward = own["antefix_carrier"].held
    if forward is None and not torch.is_grad_enabled() and not own["antefix_is_wanted"]():
        forward = NO_PREFIXES  # some generate() calls it so; with gradients, it may be a layer that runs again
    if forward is None:
        raise UnsupportedModelError(
            f"the attention at '{site.path}' ran outside a forward of its model, so no prefix could reach it; call the "
            "model, or detach the bank first."
        )
    base = base_attention(module)
    shared = forward.shared_at(site.path, key)
    if shared is None:
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    if kwargs.get("cache") is not None:  # which only Transformers' own function would fill
        raise refusal()
    obstacle = obstacle_to_sharing(base, query, key, value, attention_mask, *args, **kwargs)
    if obstacle is None:
        laid = forward.laid_together
        lay_together = None if laid is None else functools.partial(laid.at, site.path, shared[0])
        return share(module, query, key, value, attention_mask, *shared, lay_together, **kwargs), None
    if not torch.compiler.is_compiling():
        logger.debug("the prefix at '%s' is copied for each row, because %s", site.path, obstacle)
    return _concatenate(forward, shared, base, module, query, key, value, attention_mask, *args, **kwargs)


def _concatenate(
    forward: ForwardPrefixes,
    shared: tuple[Sequence[tuple[Tensor, Tensor]], Sequence[int]],
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
    prefix_key, prefix_value, real = for_each_row(*shared)
    if implementation == "flex_attention" and not isinstance(attention_mask, Tensor):
        mask: Any = attended_blocks(
            attention_mask, query, key, prefix_key.shape[2], real, shared[1], forward.block_masks
        )
    else:
        # The sdpa function hides later keys by itself; the others add a mask to the scores and do nothing else.
        additive = implementation != "sdpa"
        hides_later = not additive and is_causal(module, kwargs)
        mask = attended(attention_mask, query, key, prefix_key, real, hides_later, additive)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = _prepend_bias(forward, module, kwargs["position_bias"], prefix_key.shape[2])
    joined_key = torch.cat([prefix_key, key], dim=2)
    joined_value = torch.cat([prefix_value, value], dim=2)
    return base(module, query, joined_key, joined_value, mask, *args, **kwargs)


def _prepend_bias(forward: ForwardPrefixes, module: nn.Module, bias: Tensor, num_virtual_tokens: int) -> Tensor:
    """Put the prefix columns before a bias `(batch or 1, head, query, key)`; cross-attention knows no distances."""
    positions = forward.relative_positions
    site: Site = settings_of(module.config)["antefix_site"]
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
