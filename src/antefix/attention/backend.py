"""The function registered with Transformers: the base's attention, with the prefix of its site put in front."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from antefix.attention.carrier import Carrier
from antefix.attention.choice import obstacle_to_sharing, share
from antefix.attention.concat import concatenate
from antefix.attention.state import NO_PREFIXES, ForwardPrefixes
from antefix.continuous import refusal
from antefix.dispatch import base_attention, settings_of, switch
from antefix.errors import UnsupportedModelError
from antefix.observation import KEYWORD
from antefix.sites import Site

logger = logging.getLogger(__name__)


def open_site(
    module: nn.Module, site: Site, carrier: Carrier[ForwardPrefixes | None] | None, is_wanted: Callable[[], bool]
) -> Callable[[], None]:
    """Let prefixes into the attention of one module; the returned function undoes this, bit for bit.

    A module that no keyword reaches gets its prefixes from a carrier; `is_wanted` tells whether a prefix in use has
    something for it.
    """
    return switch(module, "antefix", attend, antefix_site=site, antefix_carrier=carrier, antefix_is_wanted=is_wanted)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the base does over `[prefix; sequence]`; tensors are `(batch, head, token, dim)`."""
    forward: ForwardPrefixes | None = kwargs.pop(KEYWORD, None)
    settings = settings_of(module.config)
    site: Site = settings["antefix_site"]
    if forward is None and settings["antefix_carrier"] is not None:
        forward = settings["antefix_carrier"].held
    if forward is None and not torch.is_grad_enabled() and not settings["antefix_is_wanted"]():
        forward = NO_PREFIXES  # as some generate() calls it; with gradients, it may be a layer that runs again
    if forward is None:
        raise UnsupportedModelError(
            f"the attention at '{site.path}' ran outside a forward of its model, so no prefix could reach it; call the "
            "model, or detach the bank first."
        )
    base = base_attention(module)
    prefixes = forward.at(site.path, key)
    if prefixes is None:
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    if kwargs.get("cache") is not None:  # only Transformers' own function would fill it
        raise refusal()
    obstacle = obstacle_to_sharing(base, query, key, value, attention_mask, *args, **kwargs)
    if obstacle is None:
        pairs, prefix_indices = prefixes
        laid = forward.laid_together
        lay_together = None if laid is None else functools.partial(laid.at, site.path, pairs)
        return share(module, query, key, value, attention_mask, pairs, prefix_indices, lay_together, **kwargs), None
    if not torch.compiler.is_compiling():
        logger.debug("the prefix at '%s' is copied for each row, because %s", site.path, obstacle)
    return concatenate(forward, prefixes, base, module, query, key, value, attention_mask, *args, **kwargs)
