"""The function registered with Transformers: the base's attention, with the prefix of its site put in front."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from antefix.attention.choice import obstacle_to_sharing, share
from antefix.attention.concat import concatenate
from antefix.attention.open_site import OpenSite
from antefix.attention.state import NO_PREFIXES, ForwardPrefixes
from antefix.continuous import refusal
from antefix.dispatch import base_attention, switch
from antefix.errors import UnsupportedModelError
from antefix.observation import KEYWORD

logger = logging.getLogger(__name__)


def open_to_prefixes(module: nn.Module, open_site: OpenSite) -> Callable[[], None]:
    """Let prefixes into the attention of one module; the returned function undoes this, bit for bit."""
    return switch(module, "antefix", attend, antefix_open_site=open_site)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the base does over `[prefix; sequence]`; tensors are `(batch, head, token, dim)`."""
    forward: ForwardPrefixes | None = kwargs.pop(KEYWORD, None)
    open_site = OpenSite.of(module)
    path = open_site.site.path
    if forward is None and open_site.carrier is not None:
        forward = open_site.carrier.held
    if forward is None and not torch.is_grad_enabled() and not open_site.is_wanted():
        forward = NO_PREFIXES  # as some generate() calls it; with gradients, it may be a layer that runs again
    if forward is None:
        raise UnsupportedModelError(
            f"the attention at '{path}' ran outside a forward of its model, so no prefix could reach it; call the "
            "model, or detach the bank first."
        )
    base = base_attention(module)
    prefixes = forward.at(path, key)
    if prefixes is None:
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    if kwargs.get("cache") is not None:  # only Transformers' own function would fill it
        raise refusal()
    obstacle = obstacle_to_sharing(base, query, key, value, attention_mask, *args, **kwargs)
    if obstacle is None:
        pairs, prefix_indices = prefixes
        laid = forward.laid_together
        lay_together = None if laid is None else functools.partial(laid.at, path, pairs)
        return share(module, query, key, value, attention_mask, pairs, prefix_indices, lay_together, **kwargs), None
    if not torch.compiler.is_compiling():
        logger.debug("the prefix at '%s' is copied for each row, because %s", path, obstacle)
    return concatenate(forward, prefixes, base, module, query, key, value, attention_mask, *args, **kwargs)
