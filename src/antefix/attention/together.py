"""`Together`: the prefixes of a mixed batch side by side in memory, where one call of a kernel reads them all.

A call for each prefix takes longer than the attention of one token does. They are laid so once for a cache that fills,
and are gone with it.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import Cache

from antefix.attention.state import KeysAndValues, LaidTogether


class Together:
    """What lies side by side for each cache."""

    def __init__(self) -> None:
        self._of_cache: WeakKeyDictionary[Cache, LaidTogether] = WeakKeyDictionary()

    def for_cache(self, prefixes: tuple[KeysAndValues, ...], cache: object) -> LaidTogether | None:
        """Return where to lay prefixes that a cache sees again; None for those that it sees first, or may see once.

        What is made anew for each forward is never the same again.
        """
        if len(prefixes) < 2 or not isinstance(cache, Cache):
            return None
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        kept = self._of_cache.get(cache)
        if kept is not None and _are_same(kept.prefixes, prefixes):
            return kept
        self._of_cache[cache] = LaidTogether(prefixes)
        return None


def _are_same(some: tuple[KeysAndValues, ...], others: tuple[KeysAndValues, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
