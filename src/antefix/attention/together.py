"""`Together`: the prefixes of a mixed batch side by side in memory, so that one kernel call reads them all.

A call for each prefix takes longer than the attention of one token does. They are laid out once for each key/value
cache, and freed with it.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from transformers import Cache

from antefix.attention.state import KeysAndValues, LaidTogether


class Together:
    """The prefixes that lie side by side for each cache."""

    def __init__(self) -> None:
        self._of_cache: WeakKeyDictionary[Cache, LaidTogether] = WeakKeyDictionary()

    def for_cache(self, prefixes: tuple[KeysAndValues, ...], cache: object) -> LaidTogether | None:
        """Return what holds the prefixes side by side if a cache sees them again; None the first time.

        Prefixes that train are made anew for each forward, so no cache sees them again.
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
