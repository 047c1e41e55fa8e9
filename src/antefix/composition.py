"""New prefixes from old ones: one after another, or averaged.

Keys are taken as they are, so each token keeps the position that was put into its key. Of two prefixes in a row, both
begin where each began alone, and the sequence stands behind their tokens together, further from each than in training.
Where positions are a bias by distance, tokens count from the sequence instead: the last one stands beside it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from antefix.errors import ConfigError, PrefixMismatchError
from antefix.prefix import Prefix


def concat(prefixes: Sequence[Prefix]) -> Prefix:
    """Put prefixes of one base model one after another into one; metadata and modules of the first are kept.

    What was put together stands in the metadata as `composition`; where a part was put together itself, so does what
    each part was made of.

    Cartridges (Eyuboglu et al. 2025, arXiv 2506.06266) of two documents put together so answer questions of both.
    Raises `ConfigError` for an empty list and `PrefixMismatchError` if the sites differ.
    """
    first = _first(prefixes)
    made = {"kind": "concat", "num_virtual_tokens": [prefix.num_virtual_tokens for prefix in prefixes]}
    return _combined(prefixes, lambda tensors: torch.cat(list(tensors), dim=1), first.modules, made)


def average(prefixes: Sequence[Prefix], weights: Sequence[float] | None = None) -> Prefix:
    """Average keys, values and modules token by token, such as of several seeds or checkpoints of one training.

    `weights`, one for each, are scaled to add up to 1. Metadata of the first is kept, with the weights under
    `composition`, as by `concat`. Raises `ConfigError` for weights that cannot be, and `PrefixMismatchError` where
    sites, lengths or modules differ.
    """
    first = _first(prefixes)
    shares = _shares(len(prefixes), weights)
    for other in prefixes[1:]:
        if other.num_virtual_tokens != first.num_virtual_tokens:
            raise PrefixMismatchError(
                f"prefixes can be averaged only where they are equally long; these have "
                f"{first.num_virtual_tokens} and {other.num_virtual_tokens} virtual tokens."
            )
        if {name: t.shape for name, t in other.modules.items()} != {name: t.shape for name, t in first.modules.items()}:
            raise PrefixMismatchError("prefixes can be averaged only where the modules beside them are the same.")
        labels = [prefix.metadata.get("labels") for prefix in (first, other)]
        if other.modules and labels[0] != labels[1]:
            raise PrefixMismatchError(
                f"heads can be averaged only where they tell the same labels; these tell {labels[0]} and {labels[1]}."
            )

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        # In double precision: the average of equal prefixes is then the same prefix.
        total = sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True))
        assert isinstance(total, Tensor)
        return total.to(functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))

    modules = {name: mean([prefix.modules[name] for prefix in prefixes]) for name in first.modules}
    return _combined(prefixes, mean, modules, {"kind": "average", "weights": shares})


def _combined(
    prefixes: Sequence[Prefix],
    combine: Callable[[Sequence[Tensor]], Tensor],
    modules: Mapping[str, Tensor],
    composition: Mapping[str, Any],
) -> Prefix:
    first = prefixes[0]
    for other in prefixes[1:]:
        fingerprints = {prefix.metadata.get("fingerprint") for prefix in (first, other)} - {None}
        if set(other.sites) != set(first.sites) or len(fingerprints) > 1:
            raise PrefixMismatchError("prefixes can be put together only where they have the same sites; these differ.")
    parts = [prefix.metadata.get("composition") for prefix in prefixes]
    if any(part is not None for part in parts):
        composition = {**composition, "parts": parts}
    return Prefix(
        sites=first.sites,
        keys={path: combine([prefix.keys[path] for prefix in prefixes]) for path in first.keys},
        values={path: combine([prefix.values[path] for prefix in prefixes]) for path in first.values},
        metadata={**first.metadata, "composition": composition} if len(prefixes) > 1 else first.metadata,
        modules=modules,
    )


def _first(prefixes: Sequence[Prefix]) -> Prefix:
    if not isinstance(prefixes, (list, tuple)) or not all(isinstance(prefix, Prefix) for prefix in prefixes):
        raise ConfigError("what is put together is a list of prefixes, such as bank.prefix(name) returns; give one.")
    if not prefixes:
        raise ConfigError("there are no prefixes to put together; give at least one.")
    first: Prefix = prefixes[0]
    return first


def _shares(number: int, weights: Sequence[float] | None) -> list[float]:
    given = [1.0] * number if weights is None else list(map(float, weights))
    total = sum(given)
    if len(given) != number or not math.isfinite(total) or total <= 0:
        raise ConfigError(f"the weights {given} must be {number} numbers whose sum is above 0.")
    return [weight / total for weight in given]
