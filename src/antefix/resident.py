"""`ResidentPrefixes`: keys and values at hand for the attention, made and brought there no more often than needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Cache

from antefix.attention.state import KeysAndValues, Pairs
from antefix.encoder import PrefixSource
from antefix.prefix import Prefix


class ResidentPrefixes:
    """Keeps frozen prefixes where they are used, at most `limit` of them, and what sources made for a cache."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # With the prefix itself: a forward that began before another one took its name may still ask for it.
        self._by_name: OrderedDict[str, tuple[Prefix, KeysAndValues]] = OrderedDict()
        self._lock = threading.Lock()
        # By the id of a source, which may not be hashable, and with the source itself, whose id no other gets then.
        self._made: WeakKeyDictionary[Any, dict[int, tuple[PrefixSource, Pairs]]] = WeakKeyDictionary()

    def frozen(self, name: str, prefix: Prefix) -> KeysAndValues:
        """Return the keys and values of a frozen prefix at all its sites, where its last use left them.

        With them is what attention has brought over to its own device and dtype, once. The least recently used ones go;
        when they are used again, they come again.
        """
        if torch.compiler.is_compiling():  # a compiled graph takes what is there, but can neither lock nor reorder
            held, resident = self._by_name.get(name, (None, None))
            return resident if resident is not None and held is prefix else _as_they_are(prefix)
        with self._lock:
            held, resident = self._by_name.get(name, (None, None))
            if resident is None or held is not prefix:
                resident = _of_use_to_training(prefix)
                self._by_name[name] = prefix, resident
            self._by_name.move_to_end(name)
            while len(self._by_name) > self.limit:
                self._by_name.popitem(last=False)
        return resident

    def made(self, source: PrefixSource, cache: Any) -> Pairs:
        """Return what a source makes: anew for each forward, or, without gradients, once for a cache that fills."""
        read_only = not (torch.is_grad_enabled() or source.training or torch.compiler.is_compiling())
        if not (read_only and isinstance(cache, Cache)):
            return source.keys_and_values()
        made = self._made.setdefault(cache, {})
        if id(source) not in made or cache.get_seq_length() == 0:
            made[id(source)] = source, source.keys_and_values()
        return made[id(source)][1]

    def drop(self, name: str) -> None:
        """Forget a frozen prefix."""
        with self._lock:
            self._by_name.pop(name, None)


def _of_use_to_training(prefix: Prefix) -> KeysAndValues:
    """Take a prefix as it is, but for what was made in inference mode, which autograd would refuse to save."""

    def usable(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.is_inference() else tensor

    with torch.inference_mode(False):
        pairs = _as_they_are(prefix).pairs
        return KeysAndValues({path: (usable(key), usable(value)) for path, (key, value) in pairs.items()})


def _as_they_are(prefix: Prefix) -> KeysAndValues:
    return KeysAndValues({path: (key, prefix.values[path]) for path, key in prefix.keys.items()})
